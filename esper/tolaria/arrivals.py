"""What arrives from outside: kept until a decision point, journaled, then applied, each once."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.blueprint.interface import Interface
from esper.errors import Unavailable
from esper.host.kept import kept_generators
from esper.kasmina.codec import write_seed_id
from esper.kasmina.lifecycle import SeedId, State
from esper.tolaria.adaptation import Adaptations
from esper.tolaria.commands import Commands
from esper.tolaria.due import Due
from esper.tolaria.entries import read_entry, write_entry
from esper.tolaria.journal import NAME, Journal
from esper.tolaria.line import Incoming, Loaded
from esper.tolaria.progress import Measured, Validations
from esper.tolaria.run import Run

REMEMBERED_COMMANDS = 1024


class Arrivals:
    """The inbox of a run, and what is to be reported of it at the next decision point."""

    def __init__(self, run: Run, adaptations: Adaptations, commands: Commands, validations: Validations) -> None:
        self.run = run
        self.adaptations = adaptations
        self.commands = commands
        self.validations = validations
        self.journal = run.journal = Journal(run.directory / NAME)
        self.due = Due(run, adaptations)
        self.waiting: list[Incoming] = []
        self.controller_state = b""
        self.last_command_sequence = 0
        # ids tell a command that was published again, under a sequence of its own
        self.command_ids: deque[str] = deque(maxlen=REMEMBERED_COMMANDS)
        self.last_reply = 0  # the latest decision point that was answered
        self.results: list[nursery_pb2.JobResult] = []
        self.outcomes: list[control_pb2.CommandOutcome] = []
        self.rollbacks: list[state_pb2.Rollback] = []
        self.stalls = 0

    def apply(self, phase: int) -> None:
        """Let everything that has arrived take effect: before (0) or after (1) the controller was asked.

        Where a replay ends here, its run may have died before all that was due had acted; the rest acts now.
        """
        if self.journal.replaying:
            for entry in self.journal.due(self.run.step, phase):
                self._apply(read_entry(entry, self._load_again), phase)
            self.end_replay()
            if self.run.muted or not self.run.deterministic:
                return
            if phase == 0:
                self.wait_for_due()
        self._collect()
        arrived, self.waiting = self.due.take(self.waiting, phase)
        for item in arrived:
            self._apply(item, phase)

    def end_replay(self) -> None:
        """Go on live once the journal has no more to say."""
        if self.run.muted and not self.journal.replaying:
            self.run.unmute()

    def wait_for_due(self) -> None:
        """Wait for every answer that is due by now. Deterministic runs only."""
        self._wait(lambda: self.due.is_all_in(self.waiting))

    def wait_for_reply(self, limit_s: float = 600.0) -> None:
        """Wait for the controller's answer to the latest decision point. Raises DeadlineExceeded, Unavailable."""
        replies = trainer_pb2.DecisionReply
        self._wait(
            lambda: any(isinstance(i, replies) and i.sequence >= self.run.sequence for i in self.waiting), limit_s
        )

    def wait_for_jobs(self, kind: str, limit_s: float) -> None:
        """After training: wait for the answers to outstanding jobs of one kind, at most `limit_s`; then all count."""
        self.due.at_once = True

        def done() -> bool:
            self._collect()
            return not self.due.unanswered(self.waiting, lambda job: job.WhichOneof("work") == kind)

        self._wait_on_line(done, limit_s)

    def load_now(self, seed: SeedId, artifact_id: str, interface: Interface) -> Loaded:
        """Get a kernel ready and wait for it, which only a resume does; what else arrives is kept.

        Raises Unavailable where it cannot be loaded: the run cannot go on without it.
        """
        found: list[Loaded] = []

        def arrived() -> bool:
            self._collect()
            for item in self.waiting:
                if isinstance(item, Loaded) and (item.seed, item.artifact_id) == (seed, artifact_id):
                    found.append(item)
            self.waiting = [item for item in self.waiting if not any(item is one for one in found)]
            return bool(found)

        self.run.line.load_kernel(seed, artifact_id, interface)
        self._wait_on_line(arrived)
        if found[0].kernel is None:
            raise Unavailable(
                f"kernel {artifact_id} of seed {seed} is needed to resume and cannot be loaded: {found[0].failure}"
            )
        return found[0]

    def settle_faults(self, met: list[tuple[SeedId, str]]) -> list[tuple[SeedId, str]]:
        """Of a step's faults those that are to be charged, journaled: in a replay what the journal says, then `met`."""
        run, journal = self.run, self.journal
        charged = journal.failed_at(run.step, run.executor.grafts)
        if not journal.replaying:
            said = {seed for seed, _ in charged}
            charged += [(seed, fault) for seed, fault in met if seed not in said]
        for seed, fault in charged:
            failed = trainer_pb2.KernelFailed(seed=write_seed_id(seed, run.run_id), fault=fault)
            journal.append(trainer_pb2.JournalEntry(step=run.step, failed=failed))
        self.end_replay()
        return charged

    def clear_reports(self) -> None:
        self.results, self.outcomes, self.rollbacks = [], [], []

    def _load_again(self, seed: SeedId, artifact_id: str) -> Loaded:
        return self.load_now(seed, artifact_id, self.run.executor.offered(seed))

    def _collect(self) -> None:
        self.waiting.extend(self.run.line.collect())
        if self.run.shadow is not None:
            self.waiting.extend(self.run.shadow.collect())
        refused, self.run.refused = self.run.refused, []
        self.waiting.extend(refused)

    def _wait(self, done: Callable[[], bool], limit_s: float = 600.0) -> None:
        if self.run.muted:
            return

        def look() -> bool:
            self._collect()
            return done()

        if not look():
            self.stalls += 1
            self._wait_on_line(look, limit_s)

    def _wait_on_line(self, done: Callable[[], bool], limit_s: float = 600.0) -> None:
        """Training draws what it would have drawn, though a nursery in this process draws from the same generators."""
        with kept_generators(self.run.parts.model):
            self.run.line.wait(done, limit_s)

    def _apply(self, item: Incoming, phase: int) -> None:
        """Journal one thing from outside, then let it act."""
        if self._seen_before(item):
            return
        self.journal.append(write_entry(item, self.run.step, phase, self.run.run_id))
        if isinstance(item, Loaded):
            self._apply_loaded(item)
        elif isinstance(item, nursery_pb2.JobResult):
            self._apply_result(item)
        elif isinstance(item, trainer_pb2.DecisionReply):
            self.last_reply, self.controller_state = item.sequence, item.controller_state
        else:
            self._apply_command(item)

    def _seen_before(self, item: Incoming) -> bool:
        """Whether it has acted already, or nobody waits for it any more."""
        if isinstance(item, trainer_pb2.SequencedCommand):
            return item.sequence <= self.last_command_sequence or item.command.command_id in self.command_ids
        if isinstance(item, trainer_pb2.DecisionReply):
            return item.sequence <= self.last_reply
        if isinstance(item, nursery_pb2.JobResult) and item.job_id not in self.run.outstanding:
            for snapshot in item.twin.snapshots:
                self.run.spool.discard(Path(snapshot.path))
            return True
        if isinstance(item, nursery_pb2.JobResult) and item.twin.partial:  # a twin that began again says it again
            return {snapshot.step for snapshot in item.twin.snapshots} <= self.adaptations.twin_steps(item.job_id)
        return False

    def _apply_command(self, item: trainer_pb2.SequencedCommand) -> None:
        self.last_command_sequence = item.sequence
        self.command_ids.append(item.command.command_id)
        outcome = self.commands.apply(item.command)
        self.outcomes.append(outcome)
        self.run.post(lambda: trainer_pb2.AttachRequest(outcome=outcome))

    def _apply_loaded(self, item: Loaded) -> None:
        run = self.run
        run.loading -= 1
        if item.unfit:
            run.executor.breaker.count(item.artifact_id)
        seed = run.executor.table[item.seed]
        if seed.state is not State.LOADING or seed.artifact_id != item.artifact_id:
            return  # cancelled or culled while its kernel was on the way
        if item.kernel is None:
            run.count_recovery("circuit_breaker" if item.refused else "escalation")
            run.executor.load_failed(item.seed, item.failure, run.step)
        else:
            run.executor.loaded(item.seed, item.kernel, run.step)

    def _apply_result(self, result: nursery_pb2.JobResult) -> None:
        run = self.run
        job = run.outstanding[result.job_id].job
        if result.HasField("twin"):
            self.adaptations.twin_saved(result.job_id, result.twin.snapshots)
            if result.twin.partial:
                return
        run.nursery_flops += result.flops
        self.results.append(result)
        if result.failure.code:
            run.count_recovery("graceful_degradation")  # the event goes on without what this job would have said
            run.post_note("warning", f"nursery job {result.job_id} failed: {result.failure.message}")
        elif result.HasField("measure") and result.measure.label == "validation":
            self._take_validation(job.measure.arms[0], result.measure.arm_losses[0])
        run.settle(result.job_id)

    def _take_validation(self, arm: nursery_pb2.Arm, loss: float) -> None:
        path = self.run.spool.hold(Path(arm.snapshot.path))
        dropped = self.validations.take(Measured(arm.snapshot.step, loss, path, tuple(arm.grafts)))
        if dropped is not None:
            self.run.spool.release(dropped.path)
