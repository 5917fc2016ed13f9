"""Other components over RPC, as the ports their users take: a stub, a deadline, and the two chunk conversions."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import grpc

from esper.api.common.v1 import artifact_pb2, resource_pb2, seed_pb2
from esper.api.emrakul.v1 import sculptor_pb2, sculptor_pb2_grpc
from esper.api.kasmina.v1 import (
    control_pb2,
    execution_pb2,
    execution_pb2_grpc,
    nursery_pb2,
    nursery_pb2_grpc,
)
from esper.api.simic.v1 import replay_pb2, replay_pb2_grpc
from esper.api.tolaria.v1 import state_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.api.urza.v1 import library_pb2_grpc
from esper.errors import Corrupt, NotFound, PreconditionFailed
from esper.rpc import chunks
from esper.urza.port import StoredReport

# Gives the channel when the first call is made: a server's own port is known only once it listens.
Channel = Callable[[], grpc.aio.Channel]

TRANSFER_S = 120.0
MAX_KERNEL_BYTES = 1 << 30


class LibraryClient:
    """esper.urza.port's Library and Reports over a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @cached_property
    def _stub(self) -> Any:
        return library_pb2_grpc.LibraryServiceStub(self._channel())

    async def create_blueprint(self, request: pb.CreateBlueprintRequest) -> pb.CreateBlueprintResponse:
        reply: pb.CreateBlueprintResponse = await self._stub.CreateBlueprint(request)
        return reply

    async def get_blueprint(self, request: pb.GetBlueprintRequest) -> pb.GetBlueprintResponse:
        reply: pb.GetBlueprintResponse = await self._stub.GetBlueprint(request)
        return reply

    async def list_blueprints(self, request: pb.ListBlueprintsRequest) -> pb.ListBlueprintsResponse:
        reply: pb.ListBlueprintsResponse = await self._stub.ListBlueprints(request)
        return reply

    async def set_blueprint_status(self, request: pb.SetBlueprintStatusRequest) -> pb.SetBlueprintStatusResponse:
        reply: pb.SetBlueprintStatusResponse = await self._stub.SetBlueprintStatus(request)
        return reply

    async def create_kernel(self, manifest: pb.KernelManifest, files: Mapping[str, bytes]) -> pb.CreateKernelResponse:
        async def requests() -> AsyncIterator[pb.CreateKernelRequest]:
            yield pb.CreateKernelRequest(manifest=manifest)
            async for chunk in chunks.send(files):
                yield pb.CreateKernelRequest(chunk=chunk)

        reply: pb.CreateKernelResponse = await self._stub.CreateKernel(requests(), timeout=TRANSFER_S)
        return reply

    async def get_kernel(self, request: pb.GetKernelRequest) -> pb.GetKernelResponse:
        reply: pb.GetKernelResponse = await self._stub.GetKernel(request)
        return reply

    async def download_kernel(
        self, request: pb.DownloadKernelRequest
    ) -> tuple[artifact_pb2.ArtifactManifest, dict[str, bytes]]:
        replies: AsyncIterator[pb.DownloadKernelResponse] = aiter(
            self._stub.DownloadKernel(request, timeout=TRANSFER_S)
        )
        first = await anext(replies, None)
        if first is None or not first.HasField("manifest"):
            raise Corrupt(f"the download of kernel {request.artifact_id} does not begin with its manifest")

        async def pieces() -> AsyncIterator[artifact_pb2.Chunk]:
            async for reply in replies:
                yield reply.chunk

        return first.manifest, await chunks.receive_files(pieces(), limit_bytes=MAX_KERNEL_BYTES)

    async def search_kernels(self, request: pb.SearchKernelsRequest) -> pb.SearchKernelsResponse:
        reply: pb.SearchKernelsResponse = await self._stub.SearchKernels(request)
        return reply

    async def set_kernel_status(self, request: pb.SetKernelStatusRequest) -> pb.SetKernelStatusResponse:
        reply: pb.SetKernelStatusResponse = await self._stub.SetKernelStatus(request)
        return reply

    async def list_kernels(self, request: pb.ListKernelsRequest) -> pb.ListKernelsResponse:
        reply: pb.ListKernelsResponse = await self._stub.ListKernels(request)
        return reply

    async def get_lineage(self, request: pb.GetLineageRequest) -> pb.GetLineageResponse:
        reply: pb.GetLineageResponse = await self._stub.GetLineage(request)
        return reply

    async def set_alias(self, request: pb.SetAliasRequest) -> pb.SetAliasResponse:
        reply: pb.SetAliasResponse = await self._stub.SetAlias(request)
        return reply

    async def get_alias(self, request: pb.GetAliasRequest) -> pb.GetAliasResponse:
        reply: pb.GetAliasResponse = await self._stub.GetAlias(request)
        return reply

    async def list_aliases(self, request: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
        reply: pb.ListAliasesResponse = await self._stub.ListAliases(request)
        return reply

    async def list_ledger(self, request: pb.ListLedgerRequest) -> pb.ListLedgerResponse:
        reply: pb.ListLedgerResponse = await self._stub.ListLedger(request)
        return reply

    async def put_report(self, report: StoredReport) -> int:
        message = pb.StoredReport(name=report.name, artifact_id=report.artifact_id, body=report.body)
        reply: pb.CreateReportResponse = await self._stub.CreateReport(pb.CreateReportRequest(report=message))
        return reply.header.revision

    async def get_report(self, name: str) -> StoredReport:
        reply: pb.GetReportResponse = await self._stub.GetReport(pb.GetReportRequest(name=name))
        return StoredReport(reply.report.name, reply.report.artifact_id, reply.report.body)

    async def list_reports(
        self, artifact_id: str, page: resource_pb2.PageRequest
    ) -> tuple[list[StoredReport], resource_pb2.PageReply]:
        request = pb.ListReportsRequest(artifact_id=artifact_id, page=page)
        reply: pb.ListReportsResponse = await self._stub.ListReports(request)
        return [StoredReport(r.name, r.artifact_id, r.body) for r in reply.reports], reply.page


class NurseryClient:
    """The nursery over a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @cached_property
    def _stub(self) -> Any:
        return nursery_pb2_grpc.NurseryServiceStub(self._channel())

    async def submit(self, job: nursery_pb2.Job) -> None:
        await self._stub.CreateJob(nursery_pb2.CreateJobRequest(request_id=job.job_id, job=job))

    async def cancel(self, job_id: str) -> None:
        with contextlib.suppress(NotFound):
            await self._stub.CancelJob(nursery_pb2.CancelJobRequest(job_id=job_id))

    async def results(self, run_id: str) -> AsyncIterator[nursery_pb2.JobResult]:
        async for reply in self._stub.WatchResults(nursery_pb2.WatchResultsRequest(run_id=run_id)):
            yield reply.result


class ReplayClient:
    """The replay store over a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @cached_property
    def _stub(self) -> Any:
        return replay_pb2_grpc.ReplayServiceStub(self._channel())

    async def summarise(self, task_name: str) -> Sequence[replay_pb2.Summary]:
        request = replay_pb2.SummariseExperiencesRequest(filter=replay_pb2.Filter(task_name=task_name))
        reply: replay_pb2.SummariseExperiencesResponse = await self._stub.SummariseExperiences(request)
        return reply.summaries

    async def gains_by_kernel(self) -> replay_pb2.SummariseExperiencesResponse:
        """Of all tasks, those that were judged."""
        request = replay_pb2.SummariseExperiencesRequest(filter=replay_pb2.Filter(only_judged=True), by_kernel=True)
        reply: replay_pb2.SummariseExperiencesResponse = await self._stub.SummariseExperiences(request)
        return reply


class SculptorClient:
    """The sculptor over a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @cached_property
    def _stub(self) -> Any:
        return sculptor_pb2_grpc.SculptorServiceStub(self._channel())

    async def advise(self, packet: state_pb2.SystemStatePacket) -> Sequence[control_pb2.ControlCommand]:
        reply: sculptor_pb2.AdviseResponse = await self._stub.Advise(sculptor_pb2.AdviseRequest(state=packet))
        return reply.commands


class ExecutionClient:
    """Runs' seeds and commands over a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @cached_property
    def _stub(self) -> Any:
        return execution_pb2_grpc.ExecutionServiceStub(self._channel())

    async def send(self, command: control_pb2.ControlCommand) -> None:
        await self._stub.SendCommand(execution_pb2.SendCommandRequest(command=command))

    async def probe(self, run_id: str) -> control_pb2.Probe:
        """A probe of every fossil of a run that can be switched off. Raises PreconditionFailed where there is none."""
        fossil = seed_pb2.SEED_STATE_FOSSILIZED
        reply = await self._stub.ListSeeds(execution_pb2.ListSeedsRequest(run_id=run_id, state=fossil))
        seeds = [seed.seed for seed in reply.seeds if not seed.folded]
        if not seeds:
            raise PreconditionFailed(f"run {run_id!r} has no fossil kept as a branch, and no other can be switched off")
        return control_pb2.Probe(probe_id=f"operator-{reply.step}", seeds=seeds)
