"""The library over the real graphs, artifacts, signatures and page tokens, through `open_library`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from esper.api.common.v1.artifact_pb2 import Attestation
from esper.api.common.v1.blueprint_pb2 import Dimension, Graph, Parameter
from esper.api.common.v1.interface_pb2 import ELEMENT_TYPE_FLOAT32, TENSOR_KIND_MAP2D, TENSOR_KIND_VECTOR
from esper.api.common.v1.interface_pb2 import Interface as InterfaceMessage
from esper.api.common.v1.resource_pb2 import TARGET_SM_90, PageRequest
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.attest import attest
from esper.artifact.body import Body, ParameterEntry
from esper.artifact.bundle import Artifact, bundle, sign, verify
from esper.artifact.keys import SigningKey, TrustRoots
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_graph
from esper.blueprint.interface import Interface, Kind
from esper.errors import Corrupt, InvalidBlueprint, InvalidRequest, Untrusted
from esper.oona.subjects import Name, name_for
from esper.urza import events
from esper.urza.library import CentralLibrary
from esper.urza.port import Library, Reports
from esper.urza.service import open_library

FORGE, EVALUATION, STRANGER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
ROOTS = TrustRoots(forge=(FORGE.public_key,), evaluation=(EVALUATION.public_key,))
SITE = InterfaceMessage(kind=TENSOR_KIND_MAP2D, channels=8, element_type=ELEMENT_TYPE_FLOAT32)
FILES = {"graph.json": b"{}", "weights.safetensors": b"weights", "module.pt": b"module", "triton/k.cubin": b"cubin"}


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[CentralLibrary]:
    opened = await open_library(f"sqlite+aiosqlite:///{tmp_path}/library.db", f"file://{tmp_path}/blobs", ROOTS)
    yield opened
    await opened.close()


def conv_graph(width: int = 3) -> Graph:
    """A convolution over the positions, which a vector site cannot carry."""
    channels = Dimension(of_channels=True)
    graph = Graph(version=1, output="conv")
    node = graph.nodes.add(name="conv", operator="conv", inputs=["input"], parameters=["weight"])
    node.attributes["kernel"].integer = width
    node.attributes["groups"].text = "depthwise"
    node.attributes["out"].dimension.CopyFrom(channels)
    shape = [channels, Dimension(minimum=1), Dimension(minimum=width)]
    graph.parameters.add(name="weight", shape=shape, initialiser=Parameter.INITIALISER_ZEROS)
    return graph


async def add_blueprint(library: CentralLibrary, graph: Graph) -> str:
    request = pb.CreateBlueprintRequest(graph=graph, title="conv", family="convolution", author="library")
    return (await library.create_blueprint(request)).blueprint.blueprint_id


def built(of: str, key: SigningKey = FORGE) -> Artifact:
    body = Body(
        blueprint_id=of,
        interface=Interface(Kind.MAP2D, 8),
        target="sm_90",
        pipeline="standard",
        forward_flops_per_position=48,
        parameters=(ParameterEntry("weight", (8, 1, 3), torch.float32),),
        files={},
        toolchain={"torch": "2.13.0"},
    )
    return sign(bundle(body, FILES), key, Attestation.ROLE_BUILT, {"toolchain": "test"})


def check_ports(library: CentralLibrary) -> tuple[Library, Reports]:
    """For the type checker: a library is both."""
    return library, library


async def test_a_signed_artifact_goes_in_is_promoted_and_comes_out_verified(library: CentralLibrary) -> None:
    check_ports(library)
    graph = conv_graph()
    of = await add_blueprint(library, graph)
    assert of == blueprint_id(read_graph(graph))
    artifact = built(of)
    manifest = pb.KernelManifest(artifact=artifact.manifest)
    kernel = (await library.create_kernel(manifest, artifact.files)).kernel
    assert (kernel.parameter_count, kernel.target, kernel.interface) == (24, TARGET_SM_90, SITE)
    promotion = attest(EVALUATION, Attestation.ROLE_PROMOTED, artifact.artifact_id, {"report": "r"})
    request = pb.SetKernelStatusRequest(
        artifact_id=artifact.artifact_id, status=pb.KERNEL_STATUS_VALIDATED, reason="passed", attestation=promotion
    )
    await library.set_kernel_status(request)
    found = await library.search_kernels(pb.SearchKernelsRequest(interface=SITE, target=TARGET_SM_90))
    assert [match.kernel.artifact_id for match in found.matches] == [artifact.artifact_id]
    back = Artifact(*await library.download_kernel(pb.DownloadKernelRequest(artifact_id=artifact.artifact_id)))
    assert verify(back, ROOTS).blueprint_id == of
    assert back.files == FILES


async def test_what_is_not_signed_by_the_roots_is_refused(library: CentralLibrary) -> None:
    of = await add_blueprint(library, conv_graph())
    forged = built(of, STRANGER)
    with pytest.raises(Untrusted, match="no trusted forge key"):
        await library.create_kernel(pb.KernelManifest(artifact=forged.manifest), forged.files)
    artifact = built(of)
    artifact.manifest.artifact_id = "f" * 64
    with pytest.raises(InvalidRequest, match="has digest"):
        await library.create_kernel(pb.KernelManifest(artifact=artifact.manifest), artifact.files)
    artifact = built(of)
    await library.create_kernel(pb.KernelManifest(artifact=artifact.manifest), artifact.files)
    by_the_forge = attest(FORGE, Attestation.ROLE_PROMOTED, artifact.artifact_id, {})
    request = pb.SetKernelStatusRequest(
        artifact_id=artifact.artifact_id, status=pb.KERNEL_STATUS_VALIDATED, reason="r", attestation=by_the_forge
    )
    with pytest.raises(Untrusted, match="no trusted evaluation key"):
        await library.set_kernel_status(request)


async def test_a_manifest_changed_in_the_database_is_found_on_download(library: CentralLibrary) -> None:
    artifact = built(await add_blueprint(library, conv_graph()))
    kernel = (await library.create_kernel(pb.KernelManifest(artifact=artifact.manifest), artifact.files)).kernel
    artifact.manifest.body = artifact.manifest.body.replace(b"sm_90", b"sm_80")
    await library._store.write(lambda tx: tx.update_kernel(kernel, artifact.manifest))
    with pytest.raises(Corrupt, match="manifest"):
        await library.download_kernel(pb.DownloadKernelRequest(artifact_id=kernel.artifact_id))
    got = await library.get_kernel(pb.GetKernelRequest(artifact_id=kernel.artifact_id))
    assert got.kernel.status == pb.KERNEL_STATUS_QUARANTINED


async def test_an_ill_formed_graph_is_refused_and_lists_follow_the_interface(library: CentralLibrary) -> None:
    bad = conv_graph()
    bad.nodes[0].inputs[0] = "nowhere"
    with pytest.raises(InvalidBlueprint, match="nowhere"):
        await add_blueprint(library, bad)
    await add_blueprint(library, conv_graph())
    await add_blueprint(library, conv_graph(width=5))

    async def listed(**fields: object) -> pb.ListBlueprintsResponse:
        return await library.list_blueprints(pb.ListBlueprintsRequest(**fields))

    assert len((await listed(interface=SITE)).blueprints) == 2
    vector = InterfaceMessage(kind=TENSOR_KIND_VECTOR, channels=8, element_type=ELEMENT_TYPE_FLOAT32)
    assert len((await listed(interface=vector)).blueprints) == 0
    token = (await listed(page=PageRequest(size=1))).page.next_token
    assert len((await listed(page=PageRequest(size=1, token=token))).blueprints) == 1


def test_every_event_has_a_subject_that_carries_it() -> None:
    kernel = pb.Kernel(artifact_id="a", blueprint_id="b", interface=SITE)
    seen = {name_for(made.payload_type) for made in (events.kernel_ready(kernel), events.kernel_characterized(kernel))}
    assert seen == {Name.KERNEL_READY, Name.KERNEL_CHARACTERIZED}
