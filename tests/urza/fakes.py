"""Stand-ins for the packages the library asks: graphs, artifacts, signatures, a clock.

The signature is a digest that only the holder of the key's name can be told from another
by; everything else about an artifact is as in the format: the id is the body's sha256.
"""

import hashlib
import json
from pathlib import Path

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, Attestation
from esper.api.common.v1.blueprint_pb2 import Graph
from esper.api.common.v1.interface_pb2 import ELEMENT_TYPE_FLOAT32, TENSOR_KIND_MAP2D, Interface
from esper.api.common.v1.resource_pb2 import TARGET_CPU
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Corrupt, InvalidBlueprint, InvalidRequest, Untrusted
from esper.rpc import paging
from esper.urza.codec import FileEntry, InterfaceKey, KernelBody
from esper.urza.library import CentralLibrary
from esper.urza.local_blobs import LocalBlobs
from esper.urza.pages import Pages
from esper.urza.port import Ports
from esper.urza.store import Store, StoreOptions

FORGE, EVALUATION, STRANGER = "forge-key", "evaluation-key", "stranger-key"
ROOTS = {Attestation.ROLE_BUILT: FORGE, Attestation.ROLE_PROMOTED: EVALUATION}
FAST = StoreOptions(synchronous="OFF")


class Clock:
    """One millisecond later at each look."""

    def __init__(self, now_ns: int = 1_800_000_000_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def graph(number: int = 0, nodes: int = 1) -> Graph:
    made = Graph(version=1, output="n0")
    for index in range(nodes):
        made.nodes.add(name=f"n{index}", operator=f"scale_{number}", inputs=["input"])
    return made


def identify(made: Graph) -> str:
    if made.version != 1:
        raise InvalidBlueprint(f"graph.version is {made.version}, this Esper reads 1")
    return sha256(made.SerializeToString(deterministic=True))


def compatible(made: Graph, site: Interface) -> tuple[bool, str]:
    """A graph of n nodes fits n channels or more."""
    fits = len(made.nodes) <= site.channels
    return fits, f"{len(made.nodes)} nodes, {site.channels} channels"


def interface(channels: int = 8, **changes: object) -> Interface:
    fields = {"kind": TENSOR_KIND_MAP2D, "channels": channels, "element_type": ELEMENT_TYPE_FLOAT32} | changes
    return Interface(**fields)


def key_id(key: str) -> str:
    return sha256(key.encode())[:16]


def sign(key: str, role: int, artifact_id: str, statement: bytes = b"{}") -> Attestation:
    signature = hashlib.sha512(b"\0".join([key.encode(), str(role).encode(), artifact_id.encode(), statement])).digest()
    return Attestation(role=role, key_id=key_id(key), statement=statement, signature=signature)


class Verifier:
    """An `ArtifactVerifier` that knows one key per role."""

    def check_id(self, manifest: ArtifactManifest) -> None:
        if sha256(manifest.body) != manifest.artifact_id:
            raise Corrupt(f"artifact {manifest.artifact_id}: its body has another digest")

    def read_body(self, manifest: ArtifactManifest) -> KernelBody:
        try:
            body = json.loads(manifest.body)
            files = {name: FileEntry(**entry) for name, entry in body.pop("files").items()}
            return KernelBody(interface=InterfaceKey(**body.pop("interface")), files=files, **body)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"artifact {manifest.artifact_id}: not a body ({error})") from error

    def check_attested(self, manifest: ArtifactManifest, role: int) -> None:
        key = ROOTS[role]
        for one in manifest.attestations:
            if one == sign(key, role, manifest.artifact_id, one.statement):
                return
        raise Untrusted(f"artifact {manifest.artifact_id}: no {Attestation.Role.Name(role)} by a known key")


def files_of(number: int = 0) -> dict[str, bytes]:
    return {"graph.json": b'{"shared":1}', "weights.safetensors": f"weights {number}".encode() * 300, "empty": b""}


def artifact(
    blueprint_id: str,
    files: dict[str, bytes] | None = None,
    *,
    key: str = FORGE,
    site: Interface | None = None,
    parameter_count: int = 100,
    target: int = TARGET_CPU,
) -> ArtifactManifest:
    """A manifest for `files`, signed "built" by `key`."""
    site = site or interface()
    files = files_of() if files is None else files
    body = {
        "blueprint_id": blueprint_id,
        "interface": {
            "kind": site.kind,
            "channels": site.channels,
            "element_type": site.element_type,
            "causal": site.causal,
        },
        "target": target,
        "pipeline": "fast",
        "parameter_count": parameter_count,
        "forward_flops_per_position": 12,
        "files": {name: {"digest": sha256(data), "size_bytes": len(data)} for name, data in files.items()},
    }
    raw = json.dumps(body, sort_keys=True).encode()
    return ArtifactManifest(
        artifact_id=sha256(raw), body=raw, attestations=[sign(key, Attestation.ROLE_BUILT, sha256(raw))]
    )


def ports(clock: Clock | None = None) -> Ports:
    return Ports(
        identify=identify,
        compatible=compatible,
        verifier=Verifier(),
        pages=Pages(paging.write_token, paging.read_token),
        clock_ns=clock or Clock(),
    )


async def open_library(folder: Path, options: StoreOptions = FAST, clock: Clock | None = None) -> CentralLibrary:
    store = await Store.open(f"sqlite+aiosqlite:///{folder}/library.db", options)
    return CentralLibrary(store, LocalBlobs(folder / "blobs"), ports(clock))


async def add_blueprint(library: CentralLibrary, number: int = 0, **changes: object) -> str:
    fields = {"graph": graph(number), "title": f"blueprint {number}", "family": "convolution", "author": "library"}
    reply = await library.create_blueprint(pb.CreateBlueprintRequest(**(fields | changes)))
    return reply.blueprint.blueprint_id


async def add_kernel(library: CentralLibrary, number: int = 0, **changes: object) -> str:
    """A kernel PENDING_BENCHMARKING, of blueprint `number`."""
    blueprint_id = await add_blueprint(library, number)
    files = files_of(number)
    manifest = artifact(blueprint_id, files, **changes)
    reply = await library.create_kernel(pb.KernelManifest(artifact=manifest), files)
    return reply.kernel.artifact_id


def promotion(artifact_id: str, statement: bytes = b"{}", **changes: object) -> pb.SetKernelStatusRequest:
    """A request that moves a kernel to VALIDATED, signed by the evaluation key."""
    fields = {
        "artifact_id": artifact_id,
        "status": pb.KERNEL_STATUS_VALIDATED,
        "reason": "every check passed",
        "attestation": sign(EVALUATION, Attestation.ROLE_PROMOTED, artifact_id, statement),
    }
    return pb.SetKernelStatusRequest(**(fields | changes))
