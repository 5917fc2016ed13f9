"""The wire: a server and a channel of our own, every rpc once, every status a client can meet."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, BlobHeader, Chunk
from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.urza.v1 import library_pb2 as pb
from esper.api.urza.v1 import library_pb2_grpc as pb_grpc
from esper.rpc import chunks
from esper.rpc.server import Server
from esper.urza.blobs import key_of
from esper.urza.library import CentralLibrary
from esper.urza.service import LibraryServicer

from .fakes import add_blueprint, add_kernel, artifact, files_of, graph, interface, promotion, sha256

ABSENT = "f" * 64
CODE = grpc.StatusCode


@pytest.fixture
async def stub(library: CentralLibrary) -> AsyncIterator[Any]:
    server = Server(tokens=None)
    server.mount(pb_grpc.add_LibraryServiceServicer_to_server, LibraryServicer(library))
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.LibraryServiceStub(channel)
    await server.stop(0)


def parts(manifest: ArtifactManifest, files: dict[str, bytes], request_id: str = "") -> list[pb.CreateKernelRequest]:
    made = [pb.CreateKernelRequest(manifest=pb.KernelManifest(artifact=manifest, request_id=request_id))]
    for name, data in files.items():
        header = BlobHeader(file=name, digest=sha256(data), size_bytes=len(data))
        made.append(pb.CreateKernelRequest(chunk=Chunk(header=header)))
        for start in range(0, len(data), chunks.CHUNK_BYTES):
            made.append(pb.CreateKernelRequest(chunk=Chunk(data=data[start : start + chunks.CHUNK_BYTES])))
    return made


async def send(stub: Any, requests: list[pb.CreateKernelRequest]) -> pb.CreateKernelResponse:
    async def stream() -> AsyncIterator[pb.CreateKernelRequest]:
        for request in requests:
            yield request

    return await stub.CreateKernel(stream(), timeout=20)


async def code_of(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return caught.value.code(), caught.value.details()


async def received(call: AsyncIterator[pb.DownloadKernelResponse]) -> tuple[ArtifactManifest, dict[str, bytes]]:
    first = await anext(call)

    async def rest() -> AsyncIterator[Chunk]:
        async for message in call:
            yield message.chunk

    return first.manifest, await chunks.receive_files(rest(), limit_bytes=1 << 30)


async def test_a_kernel_goes_over_the_wire_and_back(stub: Any, library: CentralLibrary) -> None:
    files = files_of() | {"big": b"0123456789abcdef" * 200_000}
    manifest = artifact(await add_blueprint(library), files)
    reply = await send(stub, parts(manifest, files))
    assert (reply.existed, reply.kernel.artifact_id) == (False, manifest.artifact_id)
    request = pb.DownloadKernelRequest(artifact_id=manifest.artifact_id)
    assert await received(aiter(stub.DownloadKernel(request, timeout=20))) == (manifest, files)


async def test_every_other_rpc_answers(stub: Any, library: CentralLibrary) -> None:
    created = await stub.CreateBlueprint(
        pb.CreateBlueprintRequest(request_id="r", graph=graph(5), title="t", author="karn"), timeout=5
    )
    blueprint_id = created.blueprint.blueprint_id
    assert (
        await stub.GetBlueprint(pb.GetBlueprintRequest(blueprint_id=blueprint_id), timeout=5)
    ).blueprint.title == "t"
    assert len((await stub.ListBlueprints(pb.ListBlueprintsRequest(), timeout=5)).blueprints) == 1
    moved = await stub.SetBlueprintStatus(
        pb.SetBlueprintStatusRequest(blueprint_id=blueprint_id, status=pb.BLUEPRINT_STATUS_COMPILING, reason="r"),
        timeout=5,
    )
    assert moved.blueprint.status == pb.BLUEPRINT_STATUS_COMPILING
    artifact_id = await add_kernel(library)
    assert (await stub.SetKernelStatus(promotion(artifact_id), timeout=5)).kernel.artifact_id == artifact_id
    kernel = (await stub.GetKernel(pb.GetKernelRequest(artifact_id=artifact_id), timeout=5)).kernel
    assert kernel.status == pb.KERNEL_STATUS_VALIDATED
    found = await stub.SearchKernels(pb.SearchKernelsRequest(interface=interface()), timeout=5)
    assert [match.kernel for match in found.matches] == [kernel]
    target = f"kernels/{artifact_id}"
    await stub.SetAlias(pb.SetAliasRequest(alias="best", target_name=target), timeout=5)
    assert (await stub.GetAlias(pb.GetAliasRequest(alias="best"), timeout=5)).target_name == target
    entries = (await stub.ListLedger(pb.ListLedgerRequest(), timeout=5)).entries
    watching = aiter(stub.WatchLibrary(pb.WatchLibraryRequest(after_revision=2), timeout=5))
    seen = [await anext(watching) for _ in entries[2:]]
    assert [one.entry for one in seen] == list(entries[2:])


async def test_what_a_client_gets_wrong_has_its_code(stub: Any, library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    wanted = [
        (stub.GetKernel(pb.GetKernelRequest(artifact_id="short"), timeout=5), CODE.INVALID_ARGUMENT),
        (stub.GetBlueprint(pb.GetBlueprintRequest(blueprint_id=ABSENT), timeout=5), CODE.NOT_FOUND),
        (stub.GetKernel(pb.GetKernelRequest(artifact_id=ABSENT), timeout=5), CODE.NOT_FOUND),
        (stub.GetAlias(pb.GetAliasRequest(alias="nobody"), timeout=5), CODE.NOT_FOUND),
        (stub.DownloadKernel(pb.DownloadKernelRequest(artifact_id=ABSENT), timeout=5), CODE.NOT_FOUND),
        (stub.SearchKernels(pb.SearchKernelsRequest(), timeout=5), CODE.INVALID_ARGUMENT),
        (stub.ListLedger(pb.ListLedgerRequest(page=PageRequest(token="x")), timeout=5), CODE.INVALID_ARGUMENT),
        (stub.WatchLibrary(pb.WatchLibraryRequest(after_revision=99), timeout=5), CODE.OUT_OF_RANGE),
        (
            stub.SetKernelStatus(promotion(artifact_id, status=pb.KERNEL_STATUS_SUPERSEDED), timeout=5),
            CODE.FAILED_PRECONDITION,
        ),
    ]
    for call, code in wanted:
        assert (await code_of(call))[0] is code


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda sent: sent.clear(), CODE.INVALID_ARGUMENT, "begins with its manifest"),
        (lambda sent: sent.pop(0), CODE.INVALID_ARGUMENT, "begins with its manifest"),
        (lambda sent: sent.insert(1, sent[0]), CODE.INVALID_ARGUMENT, "second manifest"),
        (lambda sent: sent.pop(1), CODE.INVALID_ARGUMENT, "begins with data"),
        (lambda sent: sent.pop(2), CODE.INVALID_ARGUMENT, "graph.json"),
        (lambda sent: sent.pop(), CODE.INVALID_ARGUMENT, "'empty' was not sent"),
        (lambda sent: setattr(sent[2].chunk, "data", b'{"shared":9}'), CODE.INVALID_ARGUMENT, "graph.json"),
        (lambda sent: setattr(sent[1].chunk.header, "file", "../x"), CODE.INVALID_ARGUMENT, "../x"),
        (lambda sent: sent[0].manifest.artifact.ClearField("attestations"), CODE.FAILED_PRECONDITION, "ROLE_BUILT"),
    ],
)
async def test_a_bad_upload_is_refused_by_name_and_leaves_nothing(
    stub: Any, library: CentralLibrary, spoil: object, code: grpc.StatusCode, words: str
) -> None:
    manifest = artifact(await add_blueprint(library))
    sent = parts(manifest, files_of())
    spoil(sent)
    seen, details = await code_of(send(stub, sent))
    assert seen is code
    assert words in details
    seen, _ = await code_of(stub.GetKernel(pb.GetKernelRequest(artifact_id=manifest.artifact_id), timeout=5))
    assert seen is CODE.NOT_FOUND


async def test_an_uploads_request_id_returns_the_first_reply(stub: Any, library: CentralLibrary) -> None:
    manifest = artifact(await add_blueprint(library))
    first = await send(stub, parts(manifest, files_of(), "r1"))
    assert await send(stub, parts(manifest, files_of(), "r1")) == first


async def test_a_spoiled_file_ends_the_download_before_it_is_whole(
    stub: Any, library: CentralLibrary, tmp_path: Path
) -> None:
    artifact_id = await add_kernel(library)
    path = tmp_path / "blobs" / key_of(sha256(files_of()["weights.safetensors"]))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    request = pb.DownloadKernelRequest(artifact_id=artifact_id)
    code, details = await code_of(stub.DownloadKernel(request, timeout=5))
    assert code is CODE.DATA_LOSS
    assert "weights.safetensors" in details
    code, _ = await code_of(stub.DownloadKernel(request, timeout=5))
    assert code is CODE.FAILED_PRECONDITION


class RemoteLibrary:
    """The adapter port.py describes, for the rpcs that stream."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def create_kernel(self, manifest: pb.KernelManifest, files: dict[str, bytes]) -> pb.CreateKernelResponse:
        async def requests() -> AsyncIterator[pb.CreateKernelRequest]:
            yield pb.CreateKernelRequest(manifest=manifest)
            async for chunk in chunks.send(files):
                yield pb.CreateKernelRequest(chunk=chunk)

        return await self._stub.CreateKernel(requests(), timeout=20)

    async def download_kernel(self, request: pb.DownloadKernelRequest) -> tuple[ArtifactManifest, dict[str, bytes]]:
        return await received(aiter(self._stub.DownloadKernel(request, timeout=20)))

    def watch_library(self, request: pb.WatchLibraryRequest) -> AsyncIterator[pb.WatchLibraryResponse]:
        return aiter(self._stub.WatchLibrary(request, timeout=20))


async def test_a_thin_adapter_makes_the_service_a_library(stub: Any, library: CentralLibrary) -> None:
    remote = RemoteLibrary(stub)
    manifest = pb.KernelManifest(artifact=artifact(await add_blueprint(library)), request_id="r")
    seen = []
    for one in (remote, library):
        reply = await one.create_kernel(manifest, files_of())
        request = pb.DownloadKernelRequest(artifact_id=reply.kernel.artifact_id)
        change = await anext(one.watch_library(pb.WatchLibraryRequest(after_revision=1)))
        seen.append((reply, await one.download_kernel(request), change))
    assert seen[0] == seen[1]
