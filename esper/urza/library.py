"""The central library: every rpc of proto/esper/api/urza/v1/library.proto, and reports.

Each write is one transaction (once.py). What a change is stands in blueprints.py,
kernels.py and catalogue.py, what moves files in transfer.py; this file brings them together.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from operator import methodcaller

from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.api.common.v1.resource_pb2 import PageReply, PageRequest, ReplyHeader
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import NotFound, OutOfRange
from esper.urza import blueprints, catalogue, codec, kernels, lineage, upkeep
from esper.urza.blobs import Blobs
from esper.urza.events import OutboxEvent
from esper.urza.intake import cut
from esper.urza.ledger import Head
from esper.urza.once import R, once
from esper.urza.port import FilePiece, Ports, StoredReport
from esper.urza.reader import Reader
from esper.urza.store import Store
from esper.urza.sweep import Swept, sweep
from esper.urza.tables import SearchTables
from esper.urza.transfer import FileStream, Transfers
from esper.urza.writer import Writer

_WATCH_BATCH = 500
# How soon a watch sees a change that another process made.
_WATCH_POLL_S = 0.5


class CentralLibrary:
    """`Library` and `Reports` over one store and one place for blobs."""

    def __init__(self, store: Store, blobs: Blobs, ports: Ports) -> None:
        self._store = store
        self._blobs = blobs
        self._ports = ports
        self._fits = blueprints.Fits(ports.compatible)
        self._transfers = Transfers(store, blobs, ports)
        self._tables = SearchTables()

    async def close(self) -> None:
        """Store the uses counted last, end watches and waits, then close the store."""
        await self._transfers.store_uses()
        await self._store.close()

    # ---- blueprints ----

    async def create_blueprint(self, request: pb.CreateBlueprintRequest) -> pb.CreateBlueprintResponse:
        blueprint_id = self._ports.identify(request.graph)
        return await self._once(
            request, pb.CreateBlueprintResponse, lambda tx, now: blueprints.create(tx, request, blueprint_id, now)
        )

    async def get_blueprint(self, request: pb.GetBlueprintRequest) -> pb.GetBlueprintResponse:
        async def get(reader: Reader) -> pb.GetBlueprintResponse:
            blueprint = await blueprints.need(reader, request.blueprint_id)
            return pb.GetBlueprintResponse(header=await _header(reader), blueprint=blueprint)

        return await self._store.read(get)

    async def list_blueprints(self, request: pb.ListBlueprintsRequest) -> pb.ListBlueprintsResponse:
        return await self._store.read(
            lambda reader: blueprints.list_page(reader, request, self._ports.pages, self._fits)
        )

    async def set_blueprint_status(self, request: pb.SetBlueprintStatusRequest) -> pb.SetBlueprintStatusResponse:
        return await self._once(
            request, pb.SetBlueprintStatusResponse, lambda tx, now: blueprints.set_status(tx, request, now)
        )

    async def get_lineage(self, request: pb.GetLineageRequest) -> pb.GetLineageResponse:
        return await self._store.read(lambda reader: lineage.get_page(reader, request, self._ports.pages))

    # ---- kernels ----

    async def create_kernel(self, manifest: pb.KernelManifest, files: Mapping[str, bytes]) -> pb.CreateKernelResponse:
        return await self._transfers.receive(manifest, cut(files))

    async def receive_kernel(
        self, manifest: pb.KernelManifest, files: AsyncIterator[FilePiece]
    ) -> pb.CreateKernelResponse:
        """`create_kernel` for files that arrive piece by piece."""
        return await self._transfers.receive(manifest, files)

    async def get_kernel(self, request: pb.GetKernelRequest) -> pb.GetKernelResponse:
        async def get(reader: Reader) -> pb.GetKernelResponse:
            kernel = await kernels.need(reader, request.artifact_id)
            manifest = await reader.manifest(request.artifact_id) if request.with_manifest else None
            return pb.GetKernelResponse(header=await _header(reader), kernel=kernel, manifest=manifest)

        return await self._store.read(get)

    async def download_kernel(self, request: pb.DownloadKernelRequest) -> tuple[ArtifactManifest, dict[str, bytes]]:
        manifest, streams = await self._transfers.send(request)
        return manifest, {one.file: b"".join([piece async for piece in one.pieces]) async for one in streams}

    async def send_kernel(
        self, request: pb.DownloadKernelRequest
    ) -> tuple[ArtifactManifest, AsyncIterator[FileStream]]:
        """`download_kernel` for files that leave piece by piece."""
        return await self._transfers.send(request)

    async def search_kernels(self, request: pb.SearchKernelsRequest) -> pb.SearchKernelsResponse:
        return await self._store.read(lambda reader: kernels.find(reader, request, self._tables))

    async def list_kernels(self, request: pb.ListKernelsRequest) -> pb.ListKernelsResponse:
        return await self._store.read(lambda reader: kernels.list_page(reader, request, self._ports.pages))

    async def set_kernel_status(self, request: pb.SetKernelStatusRequest) -> pb.SetKernelStatusResponse:
        return await self._once(
            request,
            pb.SetKernelStatusResponse,
            lambda tx, now: kernels.set_status(tx, request, self._ports.verifier, now),
        )

    # ---- aliases, the ledger, reports ----

    async def set_alias(self, request: pb.SetAliasRequest) -> pb.SetAliasResponse:
        return await self._once(request, pb.SetAliasResponse, lambda tx, now: catalogue.set_alias(tx, request, now))

    async def get_alias(self, request: pb.GetAliasRequest) -> pb.GetAliasResponse:
        return await self._store.read(lambda reader: catalogue.get_alias(reader, request))

    async def watch_library(self, request: pb.WatchLibraryRequest) -> AsyncIterator[pb.WatchLibraryResponse]:
        seen = request.after_revision
        newest = (await self._store.read(lambda reader: reader.head())).revision
        if seen > newest:
            raise OutOfRange(f"after_revision is {seen}, the library is at {newest}; watch from {newest} or before")
        while True:
            entries = await self._store.read(methodcaller("entries", seen, _WATCH_BATCH))
            for entry in entries:
                seen = entry.revision
                yield pb.WatchLibraryResponse(header=ReplyHeader(revision=seen), entry=codec.write_entry(entry))
            if not entries:
                await self._store.wait(seen, _WATCH_POLL_S)

    async def list_ledger(self, request: pb.ListLedgerRequest) -> pb.ListLedgerResponse:
        return await self._store.read(lambda reader: catalogue.list_ledger(reader, request, self._ports.pages))

    async def verify_ledger(self) -> Head:
        """See `Store.verify_ledger`."""
        return await self._store.verify_ledger()

    async def put_report(self, report: StoredReport) -> int:
        return await self._store.write(lambda tx: catalogue.put_report(tx, report, self._ports.clock_ns()))

    async def get_report(self, name: str) -> StoredReport:
        report = await self._store.read(lambda reader: reader.report(name))
        if report is None:
            raise NotFound(f"{name}: no such report in this library")
        return report

    async def list_reports(self, artifact_id: str, page: PageRequest) -> tuple[list[StoredReport], PageReply]:
        return await self._store.read(
            lambda reader: catalogue.list_reports(reader, artifact_id, page, self._ports.pages)
        )

    async def list_aliases(self, request: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
        return await self._store.read(lambda reader: catalogue.list_aliases(reader, request, self._ports.pages))

    async def curate_library(self, request: pb.CurateLibraryRequest) -> pb.CurateLibraryResponse:
        await self._transfers.store_uses()
        return await upkeep.curate(self._store, request, self._ports.clock_ns())

    async def verify_library(self, request: pb.VerifyLibraryRequest) -> pb.VerifyLibraryResponse:
        return await upkeep.verify(self._store, self._blobs, self._ports.verifier, request)

    # ---- what its process does now and then ----

    async def drain(self, publish: Callable[[OutboxEvent], Awaitable[None]]) -> int:
        """See `Store.drain`. Uses of kernels counted since are stored first."""
        await self._transfers.store_uses()
        return await self._store.drain(publish)

    async def wait(self, after_revision: int, timeout_s: float) -> int:
        """See `Store.wait`: what a publisher does between drains."""
        return await self._store.wait(after_revision, timeout_s)

    async def sweep(self, age_s: float) -> Swept:
        """Remove orphans and remembered requests older than `age_s`; see sweep.py."""
        return await sweep(self._store, self._blobs, self._ports.clock_ns() - int(age_s * 1e9))

    async def _once(self, request: object, reply_type: type[R], change: Callable[[Writer, int], Awaitable[R]]) -> R:
        clock_ns = self._ports.clock_ns
        return await once(self._store, clock_ns, request, reply_type, lambda tx: change(tx, clock_ns()))


async def _header(reader: Reader) -> ReplyHeader:
    return ReplyHeader(revision=(await reader.head()).revision)
