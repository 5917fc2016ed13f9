"""What a run tells the outside: its state at decision points, its progress, its seeds' moves, its health."""

import functools
from collections import Counter
from collections.abc import Mapping

from esper.api.kasmina.v1 import telemetry_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.kasmina.codec import write_transition
from esper.kasmina.lifecycle import LIVE, Transition
from esper.kasmina.telemetry import Sample, Sampler, reduce
from esper.tolaria.progress import Progress
from esper.tolaria.run import Run


class Reports:
    """Posts messages on the run's line; nothing here waits."""

    def __init__(self, run: Run, progress: Progress, sampler: Sampler | None) -> None:
        self.run = run
        self.progress = progress
        self.sampler = sampler
        self.sample_every_steps = run.settings.sample_every_steps or run.settings.decision_every_steps
        self.health: dict[str, telemetry_pb2.HealthSignal] = {}

    def sample(self) -> None:
        """After a step: hand over what it showed, if it was a sampled one."""
        sampler, run = self.sampler, self.run
        if sampler is not None and sampler.armed:
            active = Counter(seed.id.site for seed in run.executor.table.in_states(LIVE))
            run.post(functools.partial(self._reduce, sampler.disarm(), run.step, active))

    def arm_if_due(self) -> None:
        """Watch the next step if it is one to be sampled."""
        if self.sampler is not None and (self.run.step + 1) % self.sample_every_steps == 0:
            self.sampler.arm()

    def end_sampling(self) -> None:
        """The next step is not watched, whatever it was to be: an armed sampler holds torch.compile's stance."""
        if self.sampler is not None and self.sampler.armed:
            self.sampler.disarm()

    def _reduce(self, samples: list[Sample], step: int, active: Mapping[str, int]) -> trainer_pb2.AttachRequest | None:
        """Runs off the training thread."""
        signals = reduce(samples, step, active)
        self.health.update({signal.site: signal for signal in signals})
        if not signals:
            return None
        batch = telemetry_pb2.HealthBatch(
            run_id=self.run.run_id, signals=signals, sampling_period_steps=self.sample_every_steps
        )
        return trainer_pb2.AttachRequest(health=batch)

    def state(self, packet: state_pb2.SystemStatePacket) -> None:
        self.run.post(lambda: trainer_pb2.AttachRequest(state=packet))

    def transitions(self) -> list[Transition]:
        """Send the seeds' moves since the last call, and return them."""
        moved = self.run.executor.table.drain()
        for transition in moved:
            message = write_transition(transition, self.run.run_id)
            self.run.post(functools.partial(trainer_pb2.AttachRequest, transition=message))
        return moved

    def advance(self) -> None:
        """Send where training is and what it spent inside Esper."""
        run, progress = self.run, self.progress
        message = progress.message(run.step, run.parameter_count, run.executor.table.in_states(LIVE))
        spent = telemetry_pb2.LayerPerformance(
            run_id=run.run_id, step=run.step, inside_us=progress.take_inside_us(), recoveries=run.recoveries
        )
        if run.cache is not None:
            counts = run.cache.counts
            spent.cache_hits, spent.cache_misses = counts.memory_hits, counts.memory_misses
            if counts.retried:
                spent.recoveries["retry"] += counts.retried
        run.post(lambda: trainer_pb2.AttachRequest(progress=message))
        run.post(lambda: trainer_pb2.AttachRequest(performance=spent))

    def rollback(self, rollback: state_pb2.Rollback) -> None:
        self.run.post(lambda: trainer_pb2.AttachRequest(rollback=rollback))

    def goodbye(self, error: str = "", *, stopped: bool = False) -> None:
        """The last word, in the middle of a replay too."""
        completed = not error and not stopped
        done = trainer_pb2.Goodbye(step=self.run.step, completed=completed, error=error, stopped=stopped)
        self.run.line.post(lambda: trainer_pb2.AttachRequest(goodbye=done))

    def count_recovery(self, strategy: str) -> None:
        self.run.count_recovery(strategy)
