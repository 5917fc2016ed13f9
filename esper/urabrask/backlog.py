"""Kernels that were left without a verdict: evaluated, oldest first, while nothing else is.

The library tells of a kernel once, and the bus gives it up after some failures. It is PENDING_BENCHMARKING
then, and runs take it for one that is being made. What the library lists cannot be given up.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.urabrask.v1 import evaluation_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import EsperError
from esper.urabrask.port import Library

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 3600.0
_PAGE = 500
_PENDING = pb.KERNEL_STATUS_PENDING_BENCHMARKING


@dataclass(frozen=True, slots=True)
class Waiting:
    """A kernel without a verdict and how long ago it was stored; below 0 where clocks differ."""

    artifact_id: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Tried:
    """How often an evaluation of it was begun here, and the loop's time from which it may be again."""

    times: int
    again_s: float


def due(oldest_first: Sequence[Waiting], tried: Mapping[str, Tried], now_s: float, after_s: float) -> list[str]:
    """Which to evaluate, in order: the untried before the tried.

    What was stored less than `after_s` ago is on its way here over the bus and is left to it.
    """
    settled = [one.artifact_id for one in oldest_first if not 0 <= one.age_s < after_s]
    free = [name for name in settled if name not in tried or tried[name].again_s <= now_s]
    return sorted(free, key=lambda name: tried[name].times if name in tried else 0)


def tried_again(before: Tried | None, now_s: float, after_s: float) -> Tried:
    """One more try at `now_s`; the pause after it is `after_s`, doubled each time."""
    times = before.times + 1 if before else 1
    return Tried(times, now_s + min(after_s * 2 ** min(times - 1, 16), LONGEST_PAUSE_S))


class Backlog:
    """The backlog of one evaluator. `evaluate` joins an evaluation of the kernel that is at work."""

    def __init__(
        self,
        library: Library,
        evaluate: Callable[[str], Awaitable[evaluation_pb2.Report]],
        targets: Collection[int],
        clock: Callable[[], datetime],
        idle: Callable[[], bool],
    ) -> None:
        self._library = library
        self._evaluate = evaluate
        self._targets = targets
        self._clock = clock
        self._idle = idle
        self._tried: dict[str, Tried] = {}

    async def run(self, after_s: float) -> None:
        """For good: look now and each `after_s`."""
        while True:
            try:
                if self._idle():
                    await self.look(after_s)
            except EsperError as error:
                log.warning("kernels without a verdict wait %g s: %s", after_s, error)
            await asyncio.sleep(after_s)

    async def look(self, after_s: float) -> None:
        """Evaluate what is due for as long as nothing else is evaluated. Raises Unavailable where the library is away.

        One that ends without a verdict, however it does, is passed over for a while.
        """
        waiting = await self._waiting()
        listed = {one.artifact_id for one in waiting}
        self._tried = {name: tried for name, tried in self._tried.items() if name in listed}
        now_s = asyncio.get_running_loop().time
        for artifact_id in due(waiting, self._tried, now_s(), after_s):
            if not self._idle():
                return
            try:
                if await self._still_waits(artifact_id):
                    await self._evaluate(artifact_id)
            except Exception as error:  # of whatever kind: the others must not wait for this one
                log.warning("kernels/%s is still without a verdict: %s", artifact_id, error, exc_info=error)
            self._tried[artifact_id] = tried_again(self._tried.get(artifact_id), now_s(), after_s)

    async def _still_waits(self, artifact_id: str) -> bool:
        """Whether it got no verdict while those before it were evaluated."""
        kernel = (await self._library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel
        return kernel.status == _PENDING

    async def _waiting(self) -> list[Waiting]:
        """All that this evaluator could measure, oldest first."""
        request = pb.ListKernelsRequest(status=_PENDING, page=PageRequest(size=_PAGE))
        now, found = self._clock(), list[Waiting]()
        while True:
            reply = await self._library.list_kernels(request)
            for kernel in reply.kernels:
                if kernel.target in self._targets:
                    stored = kernel.create_time.ToDatetime(now.tzinfo)
                    found.append(Waiting(kernel.artifact_id, (now - stored).total_seconds()))
            request.page.token = reply.page.next_token
            if not request.page.token:
                return found[::-1]
