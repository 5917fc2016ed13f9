"""A whole run as its report shows it: curves, seeds' lives, decisions, ends. Pure: events in, a record out."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from esper.api.kasmina.v1 import control_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.nissa.codec import seed_name
from esper.nissa.lineage import Lineage
from esper.nissa.seeds import CULLED, Histories

Curve = list[tuple[int, float]]  # (step, value), ascending


@dataclass(frozen=True, slots=True)
class Cull:
    """A seed that was removed, and what was measured of it. `report`: None where none came."""

    seed: str
    step: int
    reason: str
    artifact_id: str
    report: controller_pb2.FieldReport | None


@dataclass(slots=True)
class RunRecord:
    """What happened in a run. Steps that a rollback undid are not in the curves."""

    run_id: str = ""
    position: int = 0
    hello: trainer_pb2.Hello | None = None
    goodbye: trainer_pb2.Goodbye | None = None
    summary: pb.RunSummary | None = None
    began: str = ""
    ended: str = ""
    step: int = 0
    train: Curve = field(default_factory=list)
    validations: dict[str, Curve] = field(default_factory=dict)  # by arm
    parameters: Curve = field(default_factory=list)
    alphas: dict[str, Curve] = field(default_factory=dict)  # by seed
    seeds: Histories = field(default_factory=Histories)
    lineage: Lineage = field(default_factory=lambda: Lineage(""))
    decisions: list[controller_pb2.Decision] = field(default_factory=list)
    unchanging_decisions: int = 0
    reports: list[controller_pb2.FieldReport] = field(default_factory=list)
    refused: list[control_pb2.CommandOutcome] = field(default_factory=list)
    rollbacks: list[state_pb2.Rollback] = field(default_factory=list)
    notes: list[tuple[int, trainer_pb2.Note]] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)  # by artifact id
    stalled_steps: int | None = None

    def culls(self) -> list[Cull]:
        """Seeds that were removed, in the order of steps, each with its report if there is one."""
        found = [
            Cull(seed, stay.step, stay.reason, stay.artifact_id, self._report_of(seed, stay.step))
            for seed, stays in self.seeds.stays.items()
            for stay in stays
            if stay.state == CULLED
        ]
        return sorted(found, key=lambda cull: (cull.step, cull.seed))

    def _report_of(self, seed: str, step: int) -> controller_pb2.FieldReport | None:
        fitting = [
            report
            for report in self.reports
            if seed_name(report.seed) == seed and report.germinated_step <= step <= report.end_step
        ]
        return min(fitting, key=lambda report: report.end_step, default=None)

    def take(self, event: pb.RunEvent) -> None:
        """Take one event, in order."""
        self.position = event.position
        self.lineage.take(event)
        kind = event.WhichOneof("event")
        if kind in _TAKE:
            _TAKE[kind](self, event)


def record_of(run_id: str, events: Iterable[pb.RunEvent]) -> RunRecord:
    """The record after `events`."""
    record = RunRecord(run_id=run_id, lineage=Lineage(run_id))
    for event in events:
        record.take(event)
    return record


def _hello(record: RunRecord, event: pb.RunEvent) -> None:
    record.hello, record.goodbye, record.ended = event.hello, None, ""
    record.began = record.began or _minute(event)
    record.seeds.begin(event.hello)


def _goodbye(record: RunRecord, event: pb.RunEvent) -> None:
    record.goodbye, record.ended = event.goodbye, _minute(event)
    record.step = event.goodbye.step


def _progress(record: RunRecord, event: pb.RunEvent) -> None:
    said = event.progress
    every = said.loss_every_steps or 1
    record.train += [(said.first_loss_step + i * every, loss) for i, loss in enumerate(said.losses)]
    if not said.losses:
        record.train.append((said.step, said.train_loss))
    record.parameters.append((said.step, said.parameters))
    for seed, alpha in said.alphas.items():
        record.alphas.setdefault(seed, []).append((said.step, alpha))
    record.step, record.stalled_steps = said.step, said.stalled_steps


def _validation(record: RunRecord, event: pb.RunEvent) -> None:
    record.validations.setdefault(event.validation.arm, []).append((event.validation.step, event.validation.loss))


def _rollback(record: RunRecord, event: pb.RunEvent) -> None:
    back = event.rollback.restored_step
    record.rollbacks.append(event.rollback)
    record.seeds.roll_back(event.rollback)
    record.train = _until(record.train, back)
    record.parameters = _until(record.parameters, back)
    record.alphas = {seed: _until(curve, back) for seed, curve in record.alphas.items()}
    if "run" in record.validations:
        record.validations["run"] = _until(record.validations["run"], back)


def _decision(record: RunRecord, event: pb.RunEvent) -> None:
    if event.decision.kind == controller_pb2.DECISION_KIND_NONE:
        record.unchanging_decisions += 1
        return
    record.decisions.append(event.decision)
    for command in event.decision.plan.commands:
        for assignment in command.germinate.assignments:
            record.titles[assignment.artifact_id] = assignment.title


def _field_report(record: RunRecord, event: pb.RunEvent) -> None:
    record.reports.append(event.field_report)
    record.titles[event.field_report.artifact_id] = event.field_report.title


def _outcome(record: RunRecord, event: pb.RunEvent) -> None:
    if not event.outcome.applied:
        record.refused.append(event.outcome)


def _note(record: RunRecord, event: pb.RunEvent) -> None:
    record.notes.append((event.step or record.step, event.note))


def _transition(record: RunRecord, event: pb.RunEvent) -> None:
    record.seeds.move(event.transition)


def _summary(record: RunRecord, event: pb.RunEvent) -> None:
    record.summary = event.summary


_TAKE = {
    "hello": _hello,
    "goodbye": _goodbye,
    "progress": _progress,
    "validation": _validation,
    "rollback": _rollback,
    "decision": _decision,
    "field_report": _field_report,
    "outcome": _outcome,
    "note": _note,
    "transition": _transition,
    "summary": _summary,
}


def _until(curve: Curve, step: int) -> Curve:
    return [point for point in curve if point[0] <= step]


def _minute(event: pb.RunEvent) -> str:
    return event.time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC")
