"""What is counted of one run: from its events, which are in a log, and from telemetry, which is not. Pure.

What comes from events is the same after a restart; what comes from telemetry counts
since this process began.
"""

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from esper.api.kasmina.v1 import nursery_pb2, telemetry_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.nissa.codec import decision_name, state_name
from esper.nissa.seeds import Histories

# Upper bounds of the histogram of time inside Esper per step, in seconds; above the last is one more.
INSIDE_BOUNDS_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0)
# The five ways to get over a fault; another name is "other", so that labels stay few.
STRATEGIES = ("retry", "fallback", "circuit_breaker", "graceful_degradation", "escalation")
ARMS = ("run", "never-grown", "static-final")
LEVELS = ("info", "warning", "error")


@dataclass(slots=True)
class RunCounts:
    """From events. Numbers that were not measured are None."""

    task: str = ""
    policy: str = ""
    step: int = 0
    total_steps: int = 0
    step_s_p50: float | None = None
    train_loss: float | None = None
    validation_loss: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    stalled_steps: int = 0
    seeds: Histories = field(default_factory=Histories)
    transitions: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    rollbacks: int = 0
    queues: dict[str, int] = field(default_factory=dict)

    def take(self, event: pb.RunEvent) -> None:
        """Count one event."""
        if event.HasField("progress"):
            self._progress(event.progress)
        elif event.HasField("transition"):
            self.seeds.move(event.transition)
            self.transitions[state_name(event.transition.to)] += 1
        elif event.HasField("decision"):
            self._decision(event.decision)
        elif event.HasField("validation"):
            arm = event.validation.arm if event.validation.arm in ARMS else "other"
            self.validation_loss[arm] = event.validation.loss
        elif event.HasField("hello"):
            self._hello(event.hello)
        elif event.HasField("rollback"):
            self.seeds.roll_back(event.rollback)
            self.rollbacks += 1
        else:
            self._rest(event)

    def _progress(self, said: trainer_pb2.Progress) -> None:
        self.step, self.train_loss, self.parameters = said.step, said.train_loss, said.parameters
        self.step_s_p50 = said.step_us_p50 / 1e6 or self.step_s_p50  # 0: no step since the last message
        self.stalled_steps = said.stalled_steps

    def _decision(self, said: controller_pb2.Decision) -> None:
        self.decisions[decision_name(said.kind)] += 1
        if said.HasField("verdict"):
            self.verdicts["kept" if said.verdict.keep else "culled"] += 1

    def _hello(self, said: trainer_pb2.Hello) -> None:
        self.task, self.policy, self.total_steps = said.task_name, said.settings.policy, said.total_steps
        self.seeds.begin(said)

    def _rest(self, event: pb.RunEvent) -> None:
        if event.HasField("outcome"):
            self.commands["applied" if event.outcome.applied else "refused"] += 1
        elif event.HasField("queues"):
            said = event.queues
            self.queues = {"compile": said.compiling, "evaluate": said.evaluating, "nursery": said.nursery}
        elif event.HasField("goodbye"):
            self.step = event.goodbye.step
        elif event.HasField("field_report"):
            self.ends[state_name(event.field_report.outcome)] += 1
        elif event.HasField("note"):
            self.notes[event.note.level if event.note.level in LEVELS else "other"] += 1


@dataclass(slots=True)
class Telemetry:
    """From readings and decision points."""

    # Steps per bucket of INSIDE_BOUNDS_S, one more for those above.
    inside: list[int] = field(default_factory=lambda: [0] * (len(INSIDE_BOUNDS_S) + 1))
    inside_s: float = 0.0
    recoveries: dict[str, int] = field(default_factory=dict)
    cache_hits: int | None = None
    cache_misses: int | None = None
    readings: int = 0
    dropped_readings: int = 0
    jobs: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind and result
    train_flops: float | None = None
    nursery_flops: float | None = None

    def take_performance(self, said: telemetry_pb2.LayerPerformance) -> None:
        """Time inside Esper per step, the kernel cache, recoveries."""
        for inside_us in filter(math.isfinite, said.inside_us):
            self.inside[bisect_left(INSIDE_BOUNDS_S, inside_us / 1e6)] += 1
            self.inside_s += inside_us / 1e6
        self.cache_hits, self.cache_misses = said.cache_hits, said.cache_misses
        self.recoveries = {name: said.recoveries[name] for name in STRATEGIES if name in said.recoveries}
        if other := sum(count for name, count in said.recoveries.items() if name not in STRATEGIES):
            self.recoveries["other"] = other

    def take_health(self, said: telemetry_pb2.HealthBatch) -> None:
        """How many readings came, and how many were dropped before they could."""
        self.readings += len(said.signals)
        self.dropped_readings += said.dropped

    def take_packet(self, said: state_pb2.SystemStatePacket) -> None:
        """What was spent, and what the nursery answered."""
        self.train_flops, self.nursery_flops = said.spending.train_flops, said.spending.nursery_flops
        for result in said.results:
            self.jobs[_job(result), "failed" if result.HasField("failure") else "done"] += 1


def _job(result: nursery_pb2.JobResult) -> str:
    return result.WhichOneof("result") or "unknown"
