"""What a person watching a run wants to see now. Pure: a state and an event give the next state."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from esper.api.common.v1 import seed_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.nissa.codec import decision_name, kind_of, seed_name
from esper.nissa.page import percent
from esper.nissa.seeds import Histories, Stay

NOTHING = decision_name(controller_pb2.DECISION_KIND_NONE)
MAX_LINES = 6  # of decisions, and of notes


@dataclass(frozen=True, slots=True)
class Site:
    """A layer with `slots` seeds."""

    name: str
    layer_kind: str
    slots: int


@dataclass(frozen=True, slots=True)
class Line:
    """Something to read. `count`: how often it was said in a row."""

    step: int
    head: str
    text: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Live:
    """One run as of its last event. What was not heard is None or empty."""

    run_id: str = ""
    task: str = ""
    policy: str = ""
    random_seed: int | None = None
    step: int = 0
    total_steps: int = 0
    train_loss: float | None = None
    step_us: float | None = None
    parameters: int | None = None
    stalled_steps: int | None = None
    validations: Mapping[str, tuple[int, float]] = field(default_factory=lambda: MappingProxyType({}))  # by arm
    sites: tuple[Site, ...] = ()
    stays: Mapping[str, tuple[Stay, ...]] = field(default_factory=lambda: MappingProxyType({}))  # by seed
    alphas: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    titles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # of the kernel, by seed
    queues: tuple[int, int, int] | None = None  # compile, evaluate, nursery
    decisions: tuple[Line, ...] = ()
    notes: tuple[Line, ...] = ()
    goodbye: trainer_pb2.Goodbye | None = None
    summary: pb.RunSummary | None = None

    def stay(self, seed: str) -> Stay:
        """Where a seed is."""
        return Histories(stays={seed: list(self.stays.get(seed, ()))}).now(seed)


def advance(live: Live, event: pb.RunEvent) -> Live:
    """The state after `event`."""
    match kind_of(event):
        case "hello":
            return _hello(live, event.hello)
        case "progress":
            return _progress(live, event.progress)
        case "transition":
            return _transition(live, event.transition)
        case "decision":
            return _decision(live, event.decision)
        case "validation":
            said = event.validation
            return replace(live, validations={**live.validations, said.arm: (said.step, said.loss)})
        case "queues":
            said_queues = event.queues
            depths = (said_queues.compiling, said_queues.evaluating, said_queues.nursery)
            return replace(live, queues=depths)
        case "rollback":
            return _rollback(live, event.rollback)
        case "goodbye":
            return replace(live, goodbye=event.goodbye, step=event.goodbye.step)
        case "summary":
            return replace(live, summary=event.summary)
        case "note":
            note = event.note
            return replace(live, notes=_add(live.notes, Line(event.step or live.step, note.level, note.text)))
        case "outcome" if not event.outcome.applied:
            words = f"{event.outcome.command_id}: {event.outcome.detail}"
            return replace(live, notes=_add(live.notes, Line(event.outcome.step, "refused", words)))
    return live


def decision_text(decision: controller_pb2.Decision) -> str:
    """Its reason, and its verdict in short."""
    if not decision.HasField("verdict"):
        return decision.reason
    verdict = decision.verdict
    gain = f"{percent(verdict.gain)} ± {percent(verdict.standard_error, sign='')}"
    return f"{'keep' if verdict.keep else 'cull'} {seed_name(verdict.seed)} ({gain}): {decision.reason}"


def _hello(live: Live, said: trainer_pb2.Hello) -> Live:
    return replace(
        live,
        run_id=said.run_id,
        task=said.task_name,
        policy=said.settings.policy,
        random_seed=said.random_seed,
        total_steps=said.total_steps,
        sites=tuple(Site(site.name, site.layer_kind, site.slots) for site in said.sites),
        goodbye=None,
    )


def _progress(live: Live, said: trainer_pb2.Progress) -> Live:
    return replace(
        live,
        step=said.step,
        train_loss=said.train_loss,
        step_us=said.step_us_p50 or live.step_us,
        parameters=said.parameters,
        stalled_steps=said.stalled_steps,
        alphas=dict(said.alphas),
    )


def _transition(live: Live, said: seed_pb2.SeedTransition) -> Live:
    histories = _histories(live)
    histories.move(said)
    return replace(live, stays=_frozen(histories))


def _rollback(live: Live, said: state_pb2.Rollback) -> Live:
    histories = _histories(live)
    histories.roll_back(said)
    words = f"back to step {said.restored_step}: {said.reason}"
    notes = _add(live.notes, Line(said.step, "rollback", words))
    return replace(live, step=said.restored_step, stays=_frozen(histories), notes=notes)


def _decision(live: Live, said: controller_pb2.Decision) -> Live:
    named = {
        seed_name(assignment.seed): assignment.title
        for command in said.plan.commands
        for assignment in command.germinate.assignments
    }
    line = Line(said.step, decision_name(said.kind), decision_text(said))
    # That nothing changes is said at every decision point: only the last one is news.
    kept = tuple(old for old in live.decisions if old.head != NOTHING or (old.head, old.text) == (line.head, line.text))
    return replace(live, decisions=_add(kept, line), titles={**live.titles, **named})


def _histories(live: Live) -> Histories:
    return Histories(stays={seed: list(stays) for seed, stays in live.stays.items()})


def _frozen(histories: Histories) -> Mapping[str, tuple[Stay, ...]]:
    return {seed: tuple(stays) for seed, stays in histories.stays.items()}


def _add(lines: tuple[Line, ...], line: Line) -> tuple[Line, ...]:
    """The last few lines; one that says what the one before it said is counted instead."""
    if lines and (lines[-1].head, lines[-1].text) == (line.head, line.text):
        return (*lines[:-1], replace(line, count=lines[-1].count + 1))
    return (*lines, line)[-MAX_LINES:]
