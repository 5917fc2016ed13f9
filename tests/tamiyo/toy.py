"""A run without a model: seeds that obey commands by the lifecycle, and a nursery that answers late and at random."""

import random
from dataclasses import dataclass, field

from esper.api.kasmina.v1 import nursery_pb2, telemetry_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.kasmina.lifecycle import BEFORE_HOST, LIVE, SeedId, State, check

from .scenes import KERNELS, SITES, answer, measured, packet, ref, site, summary, trial, verdict

EVERY = 100
EMBARGO = 300
SIZES = {k.artifact_id: k.parameter_count for k in KERNELS}


@dataclass
class ToySeed:
    key: SeedId
    state: State = State.DORMANT
    state_step: int = 0
    artifact_id: str = ""
    event_id: str = ""
    inserted_step: int = 0

    def status(self) -> telemetry_pb2.SeedStatus:
        carried = self.state is not State.DORMANT
        return telemetry_pb2.SeedStatus(
            seed=ref(self.key.site, self.key.slot),
            state=int(self.state),
            state_step=self.state_step,
            artifact_id=self.artifact_id if carried else "",
            title="title" if carried else "",
            event_id=self.event_id if carried else "",
            parameter_count=SIZES[self.artifact_id] if carried else 0,
            embargo_until_step=self.state_step + EMBARGO if self.state in (State.CULLED, State.CANCELLED) else 0,
            reason="because",
        )


@dataclass
class ToyRun:
    """`late`: decision points a nursery answer may take; `quality`: chance that a graft is of use."""

    policy: str
    rng: random.Random
    late: int = 2
    quality: float = 0.5
    budget: dict[str, float] = field(default_factory=dict)
    seeds: dict[SeedId, ToySeed] = field(default_factory=dict)
    mail: list[tuple[int, nursery_pb2.JobResult]] = field(default_factory=list)  # (step of arrival, result)
    lives: list[tuple[str, int, str]] = field(default_factory=list)  # (seed, step, outcome) of every end
    reports: list[pb.FieldReport] = field(default_factory=list)
    step: int = 0
    sequence: int = 0
    events: int = 0
    state: bytes = b""

    def __post_init__(self) -> None:
        keys = [SeedId(name, slot) for name in SITES for slot in range(2)]
        self.seeds = {key: ToySeed(key) for key in keys}

    @property
    def parameters(self) -> int:
        inside = [s for s in self.seeds.values() if s.state in LIVE or s.state is State.FOSSILIZED]
        return 1000 + sum(SIZES[s.artifact_id] for s in inside)

    def decide(self) -> pb.DecideResponse:
        """One decision point: what is due happens, the controller is asked, its commands are carried out."""
        self.step += EVERY
        self.sequence += 1
        self._pass_time()
        due = [result for at, result in self.mail if at <= self.step]
        self.mail = [(at, result) for at, result in self.mail if at > self.step]
        response = answer(self._packet(due), summaries=[summary(n) for n in (1, 2, 3)])
        self.state = response.controller_state
        self.reports += response.field_reports
        for decision in response.decisions:
            for command in decision.plan.commands:
                kind = command.WhichOneof("action")
                getattr(self, f"_{kind}")(getattr(command, kind))
        return response

    def _packet(self, results: list[nursery_pb2.JobResult]):
        return packet(
            self.policy,
            sequence=self.sequence,
            step=self.step,
            total_steps=0,
            sites=[site(name) for name in SITES],
            seeds=[s.status() for s in self.seeds.values()],
            results=results,
            controller_state=self.state,
            spending={"parameters": self.parameters, "events": self.events, "train_flops": 1e6 * self.step},
            budget=self.budget,
        )

    def _pass_time(self) -> None:
        for seed in self.seeds.values():
            if seed.state is State.LOADING:
                self._move(seed, State.TRAINING)
            elif seed.state is State.GRAFTING:
                self._move(seed, State.STABILIZATION)
            elif seed.state is State.STABILIZATION:
                self._move(seed, State.EVALUATING)
            elif seed.state in (State.CULLED, State.CANCELLED) and self.step >= seed.state_step + EMBARGO:
                self._move(seed, State.DORMANT)

    def _move(self, seed: ToySeed, to: State) -> None:
        check(seed.key, seed.state, to)  # raises IllegalTransition
        if to in (State.FOSSILIZED, State.CULLED, State.CANCELLED):
            self.lives.append((str(seed.key), self.step, to.name))
        seed.state, seed.state_step = to, self.step

    def _of(self, action) -> ToySeed:
        return self.seeds[SeedId(action.seed.site, action.seed.slot)]

    def _later(self, result: nursery_pb2.JobResult, steps: int) -> None:
        self.mail.append((self.step + steps + EVERY * self.rng.randint(0, self.late), result))

    def _germinate(self, action) -> None:
        self.events += 1
        gains = {}
        for assignment in action.assignments:
            seed = self._of(assignment)
            seed.artifact_id, seed.event_id = assignment.artifact_id, action.event_id
            self._move(seed, State.GERMINATED)
            self._move(seed, State.LOADING)
            useful = self.rng.random() < self.quality
            gains[(seed.key.site, seed.key.slot)] = [0.0, self.rng.uniform(0.02, 0.2) if useful else -0.1]
        if action.nursery_steps:
            self._later(trial(gains, action.event_id), action.nursery_steps)

    def _insert(self, action) -> None:
        seed = self._of(action)
        assert not [s for s in self.seeds.values() if s.state in LIVE], "two grafts on trial"
        self._move(seed, State.GRAFTING)
        seed.inserted_step = self.step
        for round_, steps in ((1, 400), (2, 500)):
            gain = 0.1 if self.rng.random() < 0.5 + self.quality / 2 else -0.1
            control = self.rng.choice(["twin", "ablation"])
            shown = gain if control == "twin" else 3 * gain  # the host has come to lean on its graft
            self._later(verdict(measured(shown), seed=str(seed.key), round=round_, control=control), steps)

    def _advance(self, action) -> None:
        self._move(self._of(action), State(action.to))

    def _cull(self, action) -> None:
        self._move(self._of(action), State.CULLED)

    def _cancel(self, action) -> None:
        assert self._of(action).state in BEFORE_HOST
        self._move(self._of(action), State.CANCELLED)
