"""The nursery's front desk: takes jobs, has workers do them, hands results to whoever watches the run."""

import asyncio
import itertools
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Protocol

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.errors import Exhausted, NotFound, Unavailable
from esper.kasmina.nursery.worker import failed

LONG_WORK = ("trial", "twin", "control_run")
MAX_KEPT_RESULTS = 4096
JOB_LIMIT_S = 3600.0


class Workers(Protocol):
    """Processes that do one job each; runtime's Pool is one such."""

    async def run(
        self,
        kind: str,
        payload: bytes,
        timeout_s: float,
        *,
        priority: int = 0,
        long: bool = False,
        on_partial: Callable[[bytes], None] = ...,
    ) -> bytes: ...


class NurseryDesk:
    """Jobs by id; the same id is done once. Results are kept for a while, for runs that come back.

    `provide(artifact_ids)` makes kernels available to workers, and raises where one cannot be had.
    """

    def __init__(
        self, workers: Workers, provide: Callable[[Iterable[str]], Awaitable[None]], *, max_open: int = 1000
    ) -> None:
        self.workers = workers
        self.provide = provide
        self.max_open = max_open
        self.done = 0
        self.failed = 0
        self.flops = 0.0
        self._open: dict[str, nursery_pb2.Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._results: OrderedDict[str, nursery_pb2.JobResult] = OrderedDict()
        self._partial: defaultdict[str, list[nursery_pb2.JobResult]] = defaultdict(list)
        self._watchers: defaultdict[str, set[asyncio.Queue[nursery_pb2.JobResult]]] = defaultdict(set)

    @property
    def open_jobs(self) -> int:
        return len(self._open)

    def submit(self, job: nursery_pb2.Job) -> int:
        """Queue a job; returns how many are before it. A job that is known is not done again.

        Raises Exhausted where too many are open.
        """
        if job.job_id in self._open or job.job_id in self._results:
            return 0
        if len(self._open) >= self.max_open:
            raise Exhausted(
                f"the nursery has {len(self._open)} open jobs, the limit; the run asks faster than it is answered"
            )
        self._open[job.job_id] = job
        self._tasks[job.job_id] = asyncio.create_task(self._do(job), name=job.job_id)
        return len(self._open) - 1

    def get(self, job_id: str) -> tuple[nursery_pb2.Job | None, nursery_pb2.JobResult | None]:
        """An open job, or the result of a done one. Raises NotFound for neither."""
        if job_id in self._open:
            return self._open[job_id], None
        if job_id in self._results:
            return None, self._results[job_id]
        raise NotFound(f"no nursery job {job_id!r}; results are kept for the latest {MAX_KEPT_RESULTS} jobs")

    def cancel(self, job_id: str) -> None:
        """Stop a job; its result says that it was cancelled. Raises NotFound for an unknown one."""
        self.get(job_id)
        if job_id in self._tasks:
            self._tasks[job_id].cancel()

    async def watch(self, run_id: str) -> AsyncIterator[nursery_pb2.JobResult]:
        """A run's kept results, then live ones, partial ones too; never ends by itself.

        A run that comes back may have missed part of an answer that is still being given, and waits for it.
        """
        queue: asyncio.Queue[nursery_pb2.JobResult] = asyncio.Queue()
        for result in (*itertools.chain(*self._partial.values()), *self._results.values()):
            if result.run_id == run_id:
                queue.put_nowait(result)
        self._watchers[run_id].add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers[run_id].discard(queue)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _do(self, job: nursery_pb2.Job) -> None:
        try:
            await self.provide(kernels_of(job))
            result = await self._work(job)
        except asyncio.CancelledError:
            result = failed(job, Unavailable("the job was cancelled"))
        except Exception as error:  # whatever a worker or the library raised, the run must hear of it
            result = failed(job, error)
        finally:
            self._open.pop(job.job_id, None)
            self._tasks.pop(job.job_id, None)
        self.failed += bool(result.failure.code)
        self.done += 1
        self.flops += result.flops
        self._results[job.job_id] = result
        while len(self._results) > MAX_KEPT_RESULTS:
            self._partial.pop(self._results.popitem(last=False)[0], None)
        self._tell(result)

    async def _work(self, job: nursery_pb2.Job) -> nursery_pb2.JobResult:
        """Once more, if the worker died: it may have been the machine's fault."""
        for attempt in (1, 2):
            try:
                return await self._once(job)
            except Unavailable:
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    async def _once(self, job: nursery_pb2.Job) -> nursery_pb2.JobResult:
        def partial(body: bytes) -> None:
            result = nursery_pb2.JobResult.FromString(body)
            self._partial[job.job_id].append(result)
            self._tell(result)

        long = job.WhichOneof("work") in LONG_WORK
        body = await self.workers.run(
            "nursery", job.SerializeToString(), JOB_LIMIT_S, priority=job.priority, long=long, on_partial=partial
        )
        return nursery_pb2.JobResult.FromString(body)

    def _tell(self, result: nursery_pb2.JobResult) -> None:
        for queue in self._watchers[result.run_id]:
            queue.put_nowait(result)


def kernels_of(job: nursery_pb2.Job) -> set[str]:
    """Artifact ids a job's worker must be able to load."""
    kind = job.WhichOneof("work")
    if kind == "trial":
        return {c.artifact_id for c in job.trial.candidates} | _grafted(job.trial.point.grafts)
    if kind == "twin":
        return _grafted(job.twin.point.grafts)
    if kind == "measure":
        return {a for arm in (*job.measure.arms, *job.measure.controls) for a in _grafted(arm.grafts)}
    return _grafted(job.control_run.grafts)


def _grafted(grafts: Iterable[seed_pb2.Graft]) -> set[str]:
    return {graft.artifact_id for graft in grafts if not graft.folded}
