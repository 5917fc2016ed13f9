"""gRPC shell of the central library: read, call the core, write. And how a library is put together."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from esper.api.common.v1.artifact_pb2 import BlobHeader, Chunk
from esper.api.common.v1.resource_pb2 import ReplyHeader
from esper.api.urza.v1 import library_pb2 as pb
from esper.api.urza.v1 import library_pb2_grpc as pb_grpc
from esper.artifact.keys import TrustRoots
from esper.errors import InvalidRequest
from esper.rpc import chunks, paging
from esper.urza import graphs
from esper.urza.artifacts import TrustedArtifacts
from esper.urza.blobs import closing, open_blobs
from esper.urza.engine import StoreOptions
from esper.urza.library import CentralLibrary
from esper.urza.pages import Pages
from esper.urza.port import Ports, StoredReport
from esper.urza.store import Store

Context = grpc.aio.ServicerContext[Any, Any]

# Of one upload's files together; they go to the blob store piece by piece.
UPLOAD_LIMIT_BYTES = 16 << 30


async def open_library(
    database_url: str,
    blobs_url: str,
    roots: TrustRoots,
    *,
    options: StoreOptions | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> CentralLibrary:
    """A library over a database and a place for blobs; `roots` are the keys it believes. Close it when done.

    Raises what `Store.open` and `open_blobs` raise.
    """
    ports = Ports(
        identify=graphs.identify,
        compatible=graphs.compatible,
        verifier=TrustedArtifacts(roots),
        pages=Pages(paging.write_token, paging.read_token),
        clock_ns=clock_ns,
    )
    blobs = open_blobs(blobs_url)
    return CentralLibrary(await Store.open(database_url, options), blobs, ports)


class LibraryServicer(pb_grpc.LibraryServiceServicer):
    """Contract: proto/esper/api/urza/v1/library.proto. Errors become statuses in esper.rpc's interceptor."""

    def __init__(self, library: CentralLibrary) -> None:
        self._library = library

    async def CreateBlueprint(self, request: pb.CreateBlueprintRequest, context: Context) -> pb.CreateBlueprintResponse:
        return await self._library.create_blueprint(request)

    async def GetBlueprint(self, request: pb.GetBlueprintRequest, context: Context) -> pb.GetBlueprintResponse:
        return await self._library.get_blueprint(request)

    async def ListBlueprints(self, request: pb.ListBlueprintsRequest, context: Context) -> pb.ListBlueprintsResponse:
        return await self._library.list_blueprints(request)

    async def SetBlueprintStatus(
        self, request: pb.SetBlueprintStatusRequest, context: Context
    ) -> pb.SetBlueprintStatusResponse:
        return await self._library.set_blueprint_status(request)

    async def CreateKernel(
        self, requests: AsyncIterator[pb.CreateKernelRequest], context: Context
    ) -> pb.CreateKernelResponse:
        first = await anext(requests, None)
        if first is None or not first.HasField("manifest"):
            raise InvalidRequest("an upload begins with its manifest", {"manifest": "must come first"})
        files = chunks.receive(_chunks(requests), limit_bytes=UPLOAD_LIMIT_BYTES, refuse=InvalidRequest)
        return await self._library.receive_kernel(first.manifest, files)

    async def GetKernel(self, request: pb.GetKernelRequest, context: Context) -> pb.GetKernelResponse:
        return await self._library.get_kernel(request)

    async def ListKernels(self, request: pb.ListKernelsRequest, context: Context) -> pb.ListKernelsResponse:
        return await self._library.list_kernels(request)

    async def GetLineage(self, request: pb.GetLineageRequest, context: Context) -> pb.GetLineageResponse:
        return await self._library.get_lineage(request)

    async def DownloadKernel(
        self, request: pb.DownloadKernelRequest, context: Context
    ) -> AsyncIterator[pb.DownloadKernelResponse]:
        manifest, files = await self._library.send_kernel(request)
        yield pb.DownloadKernelResponse(manifest=manifest)
        async for file in files:
            header = BlobHeader(file=file.file, digest=file.digest, size_bytes=file.size_bytes)
            yield pb.DownloadKernelResponse(chunk=Chunk(header=header))
            async with closing(file.pieces) as pieces:
                async for piece in pieces:
                    yield pb.DownloadKernelResponse(chunk=Chunk(data=piece))

    async def SearchKernels(self, request: pb.SearchKernelsRequest, context: Context) -> pb.SearchKernelsResponse:
        return await self._library.search_kernels(request)

    async def SetKernelStatus(self, request: pb.SetKernelStatusRequest, context: Context) -> pb.SetKernelStatusResponse:
        return await self._library.set_kernel_status(request)

    async def CreateReport(self, request: pb.CreateReportRequest, context: Context) -> pb.CreateReportResponse:
        revision = await self._library.put_report(_read_report(request.report))
        return pb.CreateReportResponse(header=ReplyHeader(revision=revision))

    async def GetReport(self, request: pb.GetReportRequest, context: Context) -> pb.GetReportResponse:
        return pb.GetReportResponse(report=_write_report(await self._library.get_report(request.name)))

    async def ListReports(self, request: pb.ListReportsRequest, context: Context) -> pb.ListReportsResponse:
        reports, page = await self._library.list_reports(request.artifact_id, request.page)
        return pb.ListReportsResponse(reports=[_write_report(report) for report in reports], page=page)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        return await self._library.set_alias(request)

    async def GetAlias(self, request: pb.GetAliasRequest, context: Context) -> pb.GetAliasResponse:
        return await self._library.get_alias(request)

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Context) -> pb.ListAliasesResponse:
        return await self._library.list_aliases(request)

    async def CurateLibrary(self, request: pb.CurateLibraryRequest, context: Context) -> pb.CurateLibraryResponse:
        return await self._library.curate_library(request)

    async def VerifyLibrary(self, request: pb.VerifyLibraryRequest, context: Context) -> pb.VerifyLibraryResponse:
        return await self._library.verify_library(request)

    async def WatchLibrary(
        self, request: pb.WatchLibraryRequest, context: Context
    ) -> AsyncIterator[pb.WatchLibraryResponse]:
        async with closing(self._library.watch_library(request)) as changes:
            async for change in changes:
                yield change

    async def ListLedger(self, request: pb.ListLedgerRequest, context: Context) -> pb.ListLedgerResponse:
        return await self._library.list_ledger(request)


async def _chunks(requests: AsyncIterator[pb.CreateKernelRequest]) -> AsyncIterator[Chunk]:
    async for request in requests:
        if not request.HasField("chunk"):
            raise InvalidRequest("a second manifest; only chunks follow the first", {"manifest": "repeated"})
        yield request.chunk


def _read_report(message: pb.StoredReport) -> StoredReport:
    return StoredReport(message.name, message.artifact_id, message.body)


def _write_report(report: StoredReport) -> pb.StoredReport:
    return pb.StoredReport(name=report.name, artifact_id=report.artifact_id, body=report.body)
