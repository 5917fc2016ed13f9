"""gRPC shell of observability: read, call, write."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc

from esper.api.common.v1 import resource_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.nissa.v1 import observability_pb2_grpc as pb_grpc
from esper.nissa.health import fold
from esper.nissa.recorder import Recorder
from esper.rpc import paging

Context = grpc.aio.ServicerContext[Any, Any]

# Asks every service how it is; one that does not answer is a row that does not serve.
Check = Callable[[], Awaitable[Sequence[pb.ServiceHealth]]]
# The controls of a run train after it, and its summary comes after them.
LINGER_S = 3600.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ObservabilityServicer(pb_grpc.ObservabilityServiceServicer):
    """Contract: proto/esper/api/nissa/v1/observability.proto."""

    def __init__(
        self,
        recorder: Recorder,
        check: Check,
        *,
        linger_s: float = LINGER_S,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """`linger_s`: how long a completed run is waited for after its last event, while it has no summary."""
        self.recorder = recorder
        self.check = check
        self.linger_s = linger_s
        self.now = now

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        book = self.recorder.run(request.run_id)
        events = book.log.watch(request.after_position, lambda: book.over_in_s(self.now(), self.linger_s))
        async with contextlib.aclosing(events):
            async for event in events:
                yield pb.WatchRunResponse(event=event)

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        return pb.GetMetricsResponse(text=self.recorder.metrics.text())

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        of = paging.identity("ListAuditEntries", request.run_id)
        after, size = int(paging.read_token(request.page, of) or 0), paging.size_of(request.page)
        found = self.recorder.audit.list(run_id=request.run_id, after=after, limit=size + 1)
        more = paging.write_token(str(found[size - 1].position), of) if len(found) > size else ""
        return pb.ListAuditEntriesResponse(
            header=resource_pb2.ReplyHeader(revision=self.recorder.audit.last_position),
            entries=found[:size],
            page=resource_pb2.PageReply(next_token=more),
        )

    async def VerifyAuditTrail(
        self, request: pb.VerifyAuditTrailRequest, context: Context
    ) -> pb.VerifyAuditTrailResponse:
        found = self.recorder.audit.verify()
        return pb.VerifyAuditTrailResponse(
            intact=found.intact, entries=found.entries, first_bad_position=found.first_bad_position
        )

    async def CreateReport(self, request: pb.CreateReportRequest, context: Context) -> pb.CreateReportResponse:
        book = self.recorder.run(request.run_id)
        path = await asyncio.to_thread(book.write_report, book.whole())
        return pb.CreateReportResponse(path=str(path))

    async def GetSystemHealth(self, request: pb.GetSystemHealthRequest, context: Context) -> pb.GetSystemHealthResponse:
        return fold(await self.check(), self.recorder.failures())
