"""The second pass over promoted kernels, made while nothing else is evaluated: usefulness, then words by rank.

Nothing here rejects a kernel. A restart loses nothing: what waits is found again among the
stored reports. Words are given anew where the population a kernel is compared with has moved.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.urabrask.v1 import evaluation_pb2 as pb
from esper.api.urza.v1 import library_pb2
from esper.errors import EsperError
from esper.urabrask.population import FEWEST, Population, Standing
from esper.urabrask.port import Reports
from esper.urabrask.report import give_words, read_member
from esper.urabrask.usefulness import Usefulness

log = logging.getLogger(__name__)

MAX_LOADED = 2000  # newest reports that are read at the start
GROWTH = 1.25  # a population's words are looked at again when it has grown by so much
_PAGE = 200


class SecondPass:
    """What waits, and the population. `promote_again` stores a report and signs the kernel with it."""

    def __init__(
        self,
        reports: Reports,
        kernel: Callable[[str], Awaitable[library_pb2.Kernel]],
        probe: Callable[[str], Awaitable[Usefulness]],
        promote_again: Callable[[pb.Report], Awaitable[None]],
        idle: Callable[[], bool],
    ) -> None:
        self._stored = reports
        self._kernel = kernel
        self._probe = probe
        self._promote_again = promote_again
        self._idle = idle
        self._population = Population()
        self._reports: dict[str, pb.Report] = {}  # the latest of each member
        self._waiting: dict[str, None] = {}  # in order
        self._looked_at: dict[str, int] = {}  # members of each population when its words were looked at
        self._loaded = False

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def standing(self, report: pb.Report) -> Standing:
        """Where the kernel of a report that passed stands now."""
        return self._population.standing(read_member(report))

    def characterized(self, report: pb.Report) -> None:
        """A kernel has a new verdict: it, and peers whose words its figures change, wait for the second pass."""
        if not report.passed:
            self._forget(report.artifact_id)
            return
        self._put(report)
        if not report.HasField("usefulness"):
            self._waiting[report.artifact_id] = None
        self._look_at_peers(report.population)

    async def load(self) -> None:
        """Read the latest report of each kernel, newest first, up to MAX_LOADED. Raises Unavailable."""
        token, seen = "", set[str]()
        while len(seen) < MAX_LOADED:
            found, page = await self._stored.list_reports("", PageRequest(size=_PAGE, token=token))
            for stored in found:
                report = pb.Report.FromString(stored.body)
                if report.artifact_id in seen or report.unpromotable:
                    continue
                seen.add(report.artifact_id)
                if report.population and report.artifact_id not in self._reports:
                    self._put(report)
                    if not report.HasField("usefulness"):
                        self._waiting[report.artifact_id] = None
            token = page.next_token
            if not token or not found:
                break
        self._loaded = True

    async def run(self, after_s: float) -> None:
        """For good: each `after_s` do what waits, as long as nothing else is evaluated."""
        while True:
            await asyncio.sleep(after_s)
            try:
                if not self._loaded and self._idle():
                    await self.load()
                while self._waiting and self._idle():
                    await self.step()
            except EsperError as error:
                log.warning("the second pass waits %g s: %s", after_s, error)

    async def step(self) -> pb.Report | None:
        """Revisit the kernel that has waited longest; one that fails waits behind the others."""
        artifact_id = next(iter(self._waiting))
        del self._waiting[artifact_id]
        try:
            return await self._revisit(artifact_id)
        except EsperError:
            self._waiting[artifact_id] = None
            raise

    async def _revisit(self, artifact_id: str) -> pb.Report | None:
        """The new report; None: the kernel is out of use, was evaluated meanwhile, or nothing has changed."""
        before = self._reports.get(artifact_id)
        if before is None or not await self._stands(before):
            self._forget(artifact_id)
            return None
        report = pb.Report()
        report.CopyFrom(before)
        if not report.HasField("usefulness"):
            seen = await self._probe(artifact_id)
            report.usefulness.CopyFrom(
                pb.Usefulness(
                    pairs=seen.pairs,
                    loss=seen.loss,
                    control_loss=seen.control_loss,
                    gain=seen.gain,
                    gain_standard_error=seen.gain_standard_error,
                    detail=seen.detail,
                )
            )
        give_words(report, self.standing(report))
        if before.HasField("usefulness") and _words(report) == _words(before):
            return None
        if not await self._stands(before):
            return None
        report.follows_report_id = before.follows_report_id or before.report_id
        await self._promote_again(report)
        self._put(report)
        return report

    async def _stands(self, report: pb.Report) -> bool:
        """Whether the kernel is promoted by this report now."""
        kernel = await self._kernel(report.artifact_id)
        promoted = kernel.status == library_pb2.KERNEL_STATUS_VALIDATED
        return promoted and kernel.report_name == f"reports/{report.report_id}"

    def _put(self, report: pb.Report) -> None:
        self._reports[report.artifact_id] = report
        self._population.put(read_member(report))

    def _forget(self, artifact_id: str) -> None:
        self._population.drop(artifact_id)
        self._reports.pop(artifact_id, None)
        self._waiting.pop(artifact_id, None)

    def _look_at_peers(self, group: str) -> None:
        """Every member whose words are not those it would get now waits, once the population has grown enough."""
        members = self._population.members(group)
        last = self._looked_at.get(group, 0)
        if len(members) < FEWEST or len(members) < GROWTH * last:
            return
        self._looked_at[group] = len(members)
        for member in members:
            again = pb.Report()
            again.CopyFrom(self._reports[member.artifact_id])
            give_words(again, self.standing(again))
            if _words(again) != _words(self._reports[member.artifact_id]):
                self._waiting[member.artifact_id] = None


def _words(report: pb.Report) -> tuple[object, ...]:
    return (*report.tags, report.confidence)
