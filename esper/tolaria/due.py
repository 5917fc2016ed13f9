"""When an answer from outside may act, and in which order.

In a run as it comes, everything that has arrived acts at the next decision point. A
deterministic run waits for what is due and leaves the rest for later, so that neither
the speed of others nor the order they finish in makes a difference.
"""

from collections.abc import Callable, Sequence
from typing import TypeGuard

from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.tolaria.adaptation import Adaptations
from esper.tolaria.line import Incoming, Loaded
from esper.tolaria.run import Run


class Due:
    """Tells what of a run's arrivals is due."""

    def __init__(self, run: Run, adaptations: Adaptations) -> None:
        self.run = run
        self.adaptations = adaptations
        self.at_once = False  # training is over: nothing is too early any more

    def take(self, arrived: Sequence[Incoming], phase: int = 0) -> tuple[list[Incoming], list[Incoming]]:
        """What acts now, and what goes on waiting.

        Commands act after (1) the controller was asked, with the reply that they came before, and nothing else does
        then. A run that is resumed can be told more than it has asked for again; that waits until it has.
        """
        if not self.run.deterministic:
            return [i for i in arrived if not self._is_early(i)], [i for i in arrived if self._is_early(i)]
        asked = self.run.sequence if phase else self.run.sequence - 1
        replies = [at for at, item in enumerate(arrived) if _is_reply(item) and item.sequence <= asked]
        end = max(replies, default=-1)
        due = [
            not self._is_early(item) and (self.at_once or self._is_now(item, at <= end, phase))
            for at, item in enumerate(arrived)
        ]
        now = [item for item, acts in zip(arrived, due, strict=True) if acts]
        return sorted(now, key=in_order), [item for item, acts in zip(arrived, due, strict=True) if not acts]

    def is_all_in(self, arrived: Sequence[Incoming]) -> bool:
        """Whether every answer that is due by now has arrived."""
        loaded = sum(isinstance(item, Loaded) for item in arrived)
        return loaded >= self.run.loading and not self.unanswered(arrived, lambda job: self._wants(job, arrived))

    def unanswered(self, arrived: Sequence[Incoming], which: Callable[[nursery_pb2.Job], bool]) -> bool:
        """Whether a job of this kind is outstanding and its last answer not among `arrived`."""
        here = {result.job_id for result in _results(arrived) if not result.twin.partial}
        return any(which(o.job) for job_id, o in self.run.outstanding.items() if job_id not in here)

    def _wants(self, job: nursery_pb2.Job, arrived: Sequence[Incoming]) -> bool:
        """Whether a job owes an answer by now. A twin answers step by step; any other job as a whole."""
        if not job.HasField("twin"):
            return job.due_step <= self.run.step
        here = {s.step for r in _results(arrived) if r.job_id == job.job_id for s in r.twin.snapshots}
        return not self._twin_steps_due(job) <= here | self.adaptations.twin_steps(job.job_id)

    def _is_now(self, item: Incoming, replied: bool, phase: int) -> bool:
        return replied if _is_told(item) else not phase and self._is_due(item)

    def _is_early(self, item: Incoming) -> bool:
        """Whether it answers a job that this run is yet to ask for, as the one before it was resumed had done."""
        return isinstance(item, nursery_pb2.JobResult) and _number(item.job_id) > self.run.jobs

    def _is_due(self, item: Incoming) -> bool:
        if not isinstance(item, nursery_pb2.JobResult) or item.job_id not in self.run.outstanding:
            return True
        job = self.run.outstanding[item.job_id].job
        if not job.HasField("twin"):
            return job.due_step <= self.run.step
        if item.twin.snapshots:
            return item.twin.snapshots[-1].step <= self.run.step
        return not self._twin_steps_due(job) <= self.adaptations.twin_steps(job.job_id)  # it failed

    def _twin_steps_due(self, job: nursery_pb2.Job) -> set[int]:
        return {step for step in job.twin.save_steps if step <= self.run.step}


def in_order(item: Incoming) -> tuple[int, str | int, int]:
    """One order for all arrivals: kernels by seed, results by job, commands by sequence, then the answer they end."""
    if isinstance(item, Loaded):
        return 0, item.seed.site, item.seed.slot
    if isinstance(item, nursery_pb2.JobResult):
        last = item.twin.snapshots[-1].step if item.twin.partial else 1 << 62
        return 1, _number(item.job_id), last
    if isinstance(item, trainer_pb2.SequencedCommand):
        return 2, item.sequence, 0
    return 3, item.sequence, 0


def _number(job_id: str) -> int:
    """Jobs are numbered in the order in which they were asked for."""
    number = job_id.rpartition("/")[2]
    return int(number) if number.isdecimal() else 0


def _is_reply(item: Incoming) -> TypeGuard[trainer_pb2.DecisionReply]:
    return isinstance(item, trainer_pb2.DecisionReply)


def _is_told(item: Incoming) -> bool:
    return isinstance(item, trainer_pb2.DecisionReply | trainer_pb2.SequencedCommand)


def _results(arrived: Sequence[Incoming]) -> list[nursery_pb2.JobResult]:
    return [item for item in arrived if isinstance(item, nursery_pb2.JobResult)]
