"""gRPC shells of the execution layer and the nursery: read, call, write."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import control_pb2, execution_pb2, execution_pb2_grpc, telemetry_pb2
from esper.api.kasmina.v1 import nursery_pb2 as pb
from esper.api.kasmina.v1 import nursery_pb2_grpc as pb_grpc
from esper.errors import NotFound, PreconditionFailed
from esper.kasmina.nursery.desk import NurseryDesk

Context = grpc.aio.ServicerContext[Any, Any]
Publish = Callable[[control_pb2.ControlCommand], Awaitable[None]]


class NurseryServicer(pb_grpc.NurseryServiceServicer):
    """Contract: proto/esper/api/kasmina/v1/nursery.proto."""

    def __init__(self, desk: NurseryDesk, workers: Callable[[], tuple[int, int, int]]) -> None:
        """`workers()` returns how many jobs wait, are worked on, and how many workers there are."""
        self.desk = desk
        self.workers = workers

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        return pb.CreateJobResponse(ahead=self.desk.submit(request.job))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        job, result = self.desk.get(request.job_id)
        return pb.GetJobResponse(job=job, result=result)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        self.desk.cancel(request.job_id)
        return pb.CancelJobResponse()

    async def WatchResults(
        self, request: pb.WatchResultsRequest, context: Context
    ) -> AsyncIterator[pb.WatchResultsResponse]:
        async for result in self.desk.watch(request.run_id):
            yield pb.WatchResultsResponse(result=result)

    async def GetNurseryStatus(
        self, request: pb.GetNurseryStatusRequest, context: Context
    ) -> pb.GetNurseryStatusResponse:
        queued, busy, workers = self.workers()
        return pb.GetNurseryStatusResponse(
            queued=queued,
            busy_workers=busy,
            workers=workers,
            done=self.desk.done,
            failed=self.desk.failed,
            flops=self.desk.flops,
        )


class ExecutionServicer(execution_pb2_grpc.ExecutionServiceServicer):
    """Contract: proto/esper/api/kasmina/v1/execution.proto. Seeds are as SeedBoard has them."""

    def __init__(self, board: "SeedBoard", publish: Publish) -> None:
        self.board = board
        self.publish = publish

    async def ListSeeds(
        self, request: execution_pb2.ListSeedsRequest, context: Context
    ) -> execution_pb2.ListSeedsResponse:
        step, seeds = self.board.seeds(request.run_id)
        wanted = [seed for seed in seeds if request.state in (0, seed.state)]
        return execution_pb2.ListSeedsResponse(seeds=wanted, step=step)

    async def SendCommand(
        self, request: execution_pb2.SendCommandRequest, context: Context
    ) -> execution_pb2.SendCommandResponse:
        self.board.check(request.command)
        await self.publish(request.command)
        return execution_pb2.SendCommandResponse()


_ALPHA_AT_END = {
    seed_pb2.SEED_STATE_FOSSILIZED: 1.0,
    seed_pb2.SEED_STATE_CULLED: 0.0,
    seed_pb2.SEED_STATE_CANCELLED: 0.0,
}


class SeedBoard:
    """The latest seeds of each run, as its packets told; of one that is over, with the moves that its end made."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[int, list[telemetry_pb2.SeedStatus], bool]] = {}

    def show(self, run_id: str, step: int, seeds: list[telemetry_pb2.SeedStatus], *, over: bool) -> None:
        """Take one decision point."""
        self._latest[run_id] = (step, seeds, over)

    def move(self, run_id: str, moved: seed_pb2.SeedTransition) -> None:
        """Take one move of a run that is over. While one goes on, its next packet has it, and more."""
        step, seeds, over = self._latest.get(run_id, (0, [], False))
        if not over:
            return
        for seed in seeds:
            if (seed.seed.site, seed.seed.slot) == (moved.seed.site, moved.seed.slot):
                seed.state, seed.state_step, seed.reason = moved.to, moved.step, moved.reason
                seed.alpha = _ALPHA_AT_END.get(moved.to, seed.alpha)
        self._latest[run_id] = (max(step, moved.step), seeds, over)

    def seeds(self, run_id: str) -> tuple[int, list[telemetry_pb2.SeedStatus]]:
        """Step and seeds of a run's last decision point. Raises NotFound for an unknown run."""
        if run_id not in self._latest:
            raise NotFound(
                f"no run {run_id!r} has reached a decision point here; runs: {', '.join(self._latest) or 'none'}"
            )
        step, seeds, _ = self._latest[run_id]
        return step, seeds

    def check(self, command: control_pb2.ControlCommand) -> None:
        """Raise NotFound for an unknown run or seed, PreconditionFailed for a run that is over."""
        _, seeds = self.seeds(command.run_id)
        if self._latest[command.run_id][2]:
            raise PreconditionFailed(f"run {command.run_id!r} is over; commands are for runs in training")
        known = {(seed.seed.site, seed.seed.slot) for seed in seeds}
        action = getattr(command, command.WhichOneof("action") or "pause")
        if hasattr(action, "seed") and (action.seed.site, action.seed.slot) not in known:
            sites = sorted({site for site, _ in known})
            raise NotFound(
                f"no seed {action.seed.site}/{action.seed.slot} in run {command.run_id!r}; sites: {', '.join(sites)}"
            )
