"""A short run with one of everything: what its trainer, its controller and its services say, in order.

Step by step: two candidates are tried, one is inserted, kept and fossilised; a second event ends in
a cull; a rollback undoes a few steps; the controls come in; the summary closes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2, telemetry_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.api.urza.v1.library_pb2 import Blueprint
from esper.blueprint.codec import write_graph
from esper.karn.templates import TEMPLATES

RUN = "run-1"
GOOD, BAD = "a" * 64, "b" * 64
NOON = 1_800_000_000
STATES = {name.removeprefix("SEED_STATE_"): number for name, number in seed_pb2.SeedState.items()}


@dataclass(frozen=True)
class Said:
    """One thing that is said, and when: an AttachRequest, a DecideResponse or a RunEvent."""

    message: Message
    time: Timestamp


def at(second: float) -> Timestamp:
    return Timestamp(seconds=NOON + int(second), nanos=int(second % 1 * 1e9))


def seed(site: str = "fc1", slot: int = 0, run_id: str = RUN) -> seed_pb2.SeedRef:
    return seed_pb2.SeedRef(run_id=run_id, site=site, slot=slot)


def hello(run_id: str = RUN, **fields) -> trainer_pb2.Hello:
    sites = [
        state_pb2.SiteState(name="fc1", layer_kind="Linear", slots=2),
        state_pb2.SiteState(name="conv", layer_kind="Conv2d", slots=1),
    ]
    made = {
        "task_name": "digits",
        "directory": "",
        "sites": sites,
        "settings": state_pb2.GrowthSettings(policy="heuristic", min_gain=0.01),
        "total_steps": 1000,
        "random_seed": 7,
        "versions": {"torch": "2.13.0", "esper": "0.1.0"},
        "session": "s1",
    }
    return trainer_pb2.Hello(run_id=run_id, **(made | fields))


def moved(source: str, to: str, step: int, where=None, artifact_id=GOOD, reason=None) -> seed_pb2.SeedTransition:
    message = seed_pb2.SeedTransition(
        seed=where or seed(), to=STATES[to], step=step, artifact_id=artifact_id, reason=reason or f"to {to}"
    )
    setattr(message, "from", STATES[source])
    return message


def progress(step: int, loss: float = 1.0, alphas=None, **fields) -> trainer_pb2.Progress:
    return trainer_pb2.Progress(
        step=step,
        train_loss=loss,
        step_us_p50=500.0,
        losses=[loss + 0.1, loss],
        first_loss_step=max(0, step - 2),
        loss_every_steps=1,
        parameters=fields.pop("parameters", 1000),
        alphas=alphas or {},
        **fields,
    )


def packet(step: int, validation: float | None = None, **fields) -> state_pb2.SystemStatePacket:
    message = state_pb2.SystemStatePacket(run_id=RUN, sequence=max(1, step), step=step, **fields)
    if validation is not None:
        message.validation_loss, message.validation_step = validation, step
    message.spending.train_flops, message.spending.nursery_flops = 1e9 * step, 5e8 * step
    return message


def status(artifact_id: str, title: str) -> telemetry_pb2.SeedStatus:
    return telemetry_pb2.SeedStatus(
        seed=seed(),
        artifact_id=artifact_id,
        blueprint_id="c" * 64,
        title=title,
        family="bottleneck",
        parameter_count=64,
    )


def ancestors() -> list[Blueprint]:
    """The blueprint of every status and its two parents, as the library tells of them."""
    return [
        Blueprint(
            blueprint_id="c" * 64,
            graph=write_graph(TEMPLATES["conv3"].graph),
            title="karn_1 of low_rank and <i>gate</i>",
            family="gate",
            author="karn",
            source="made for map[8] float32; add gelu; remove add",
            parent_ids=["d" * 64, "e" * 64],
        ),
        Blueprint(blueprint_id="e" * 64, title="<i>gate</i>", family="gate", author="eve"),
        Blueprint(
            blueprint_id="d" * 64,
            title="low_rank",
            family="mlp",
            author="library",
            source="Hu et al. 2021, arXiv:2106.09685",
        ),
    ]


def germinate(step: int) -> controller_pb2.Decision:
    decision_id = f"{RUN}/{step}/0"
    pairs = ((seed(), GOOD, "bottleneck 4"), (seed("conv"), BAD, "gate"))
    command = control_pb2.ControlCommand(
        command_id=f"{decision_id}/0",
        run_id=RUN,
        issuer="tamiyo",
        decision_id=decision_id,
        reason="a plateau",
        germinate=control_pb2.Germinate(
            event_id=f"e{step}",
            assignments=[control_pb2.Assignment(seed=s, artifact_id=a, title=t) for s, a, t in pairs],
        ),
    )
    return controller_pb2.Decision(
        decision_id=decision_id,
        run_id=RUN,
        sequence=step,
        step=step,
        kind=controller_pb2.DECISION_KIND_ADD_SEED,
        confidence=0.8,
        urgency=0.5,
        reason="loss has not fallen for 200 steps",
        policy="heuristic",
        plan=controller_pb2.Plan(steps=["try", "insert"], undo="cull", commands=[command]),
        candidates=[
            controller_pb2.Candidate(
                seed=seed(), artifact_id=GOOD, title="bottleneck 4", isolated_gain=0.04, reason="best", chosen=True
            ),
            controller_pb2.Candidate(seed=seed("conv"), artifact_id=BAD, title="gate", reason="no experience"),
        ],
        time=at(step),
    )


def judged(step: int, keep: bool, where=None) -> controller_pb2.Decision:
    verdict = controller_pb2.Verdict(
        seed=where or seed(),
        keep=keep,
        gain=0.031 if keep else 0.001,
        standard_error=0.006,
        control=training_pb2.CONTROL_TWIN,
        measurement=training_pb2.PairedMeasurement(pairs=512, mean=0.5, control_mean=0.516),
        false_keep_rate=0.03,
        reason="gain above 1 %" if keep else "gain 0.10 % is below 1 %",
        round=1,
    )
    kinds = controller_pb2
    return controller_pb2.Decision(
        decision_id=f"{RUN}/{step}/0",
        run_id=RUN,
        sequence=step,
        step=step,
        kind=kinds.DECISION_KIND_MODIFY if keep else kinds.DECISION_KIND_REMOVE_SEED,
        confidence=0.9,
        reason=verdict.reason,
        policy="heuristic",
        verdict=verdict,
        time=at(step),
    )


def nothing(step: int) -> controller_pb2.Decision:
    return controller_pb2.Decision(
        decision_id=f"{RUN}/{step}/0",
        run_id=RUN,
        sequence=step,
        step=step,
        kind=controller_pb2.DECISION_KIND_NONE,
        confidence=1.0,
        reason="cooldown",
        policy="heuristic",
        time=at(step),
    )


def report(step: int, outcome: str, where=None, **fields) -> controller_pb2.FieldReport:
    return controller_pb2.FieldReport(
        report_id=f"{step:064x}",
        seed=where or seed(),
        task_name="digits",
        title="bottleneck 4",
        family="bottleneck",
        artifact_id=GOOD,
        layer_kind="Linear",
        outcome=STATES[outcome],
        germinated_step=100,
        end_step=step,
        reason=f"it became {outcome}",
        time=at(step),
        **fields,
    )


def ask(**message) -> trainer_pb2.AttachRequest:
    return trainer_pb2.AttachRequest(sequence=1, **message)


def answer(*decisions, reports=()) -> controller_pb2.DecideResponse:
    return controller_pb2.DecideResponse(decisions=decisions, field_reports=reports)


def validation(step: int, loss: float, arm: str) -> pb.RunEvent:
    return pb.RunEvent(run_id=RUN, step=step, validation=pb.Validation(step=step, loss=loss, arm=arm))


def summary() -> pb.RunSummary:
    arms = [
        pb.ArmSummary(arm="grown", test_loss=0.41, test_score=0.91, parameters=1064, total_flops=3e12, best_step=900),
        pb.ArmSummary(arm="never-grown", test_loss=0.45, test_score=0.89, parameters=1000, total_flops=1e12),
        pb.ArmSummary(arm="static-final", test_loss=0.42, parameters=1064, total_flops=1.1e12, best_step=800),
    ]
    return pb.RunSummary(arms=arms, train_flops=1e12, nursery_flops=2e12, stalled_steps=0, fossilised=1, culled=1)


def messages(directory: str = "", **fields) -> Iterator[Said]:
    """The whole run."""
    for number, message in enumerate(_story(hello(directory=directory, **fields))):
        yield Said(message, at(number))


def _story(begun: trainer_pb2.Hello) -> Iterator[Message]:
    yield ask(hello=begun)
    yield ask(progress=progress(100, 1.0))
    yield ask(state=packet(100, 1.1, seeds=[status(GOOD, "bottleneck 4"), status(BAD, "gate")]))
    yield answer(nothing(100))
    yield ask(health=telemetry_pb2.HealthBatch(run_id=RUN, signals=[{"site": "fc1"}], sampling_period_steps=32))
    yield ask(performance=telemetry_pb2.LayerPerformance(run_id=RUN, step=100, inside_us=[3.0, 40.0, 2e6]))
    yield answer(germinate(200))
    outcome = control_pb2.CommandOutcome(command_id=f"{RUN}/200/0/0", step=210, applied=True, detail="2 seeds")
    yield ask(outcome=outcome)
    yield from _life(210)
    yield pb.RunEvent(run_id=RUN, queues=pb.Queues(compiling=2, evaluating=1, nursery=3))
    yield answer(judged(400, True))
    yield ask(transition=moved("EVALUATING", "FINE_TUNING", 410))
    yield ask(progress=progress(420, 0.7, {"fc1/0": 1.0}, parameters=1064))
    yield ask(transition=moved("FINE_TUNING", "FOSSILIZED", 450))
    yield answer(nothing(460), reports=[report(450, "FOSSILIZED", gain=0.031, standard_error=0.006)])
    yield ask(transition=moved("DORMANT", "GERMINATED", 500, seed("fc1", 1), BAD))
    yield ask(transition=moved("GERMINATED", "GRAFTING", 510, seed("fc1", 1), BAD))
    yield ask(rollback=state_pb2.Rollback(step=530, restored_step=505, reason="loss is NaN", locked_seeds=[]))
    yield ask(progress=progress(520, 0.65))
    yield ask(transition=moved("GERMINATED", "GRAFTING", 525, seed("fc1", 1), BAD))
    yield answer(judged(700, False, seed("fc1", 1)))
    reason = "gain 0.10 % is below 1 %"
    yield ask(transition=moved("GRAFTING", "CULLED", 710, seed("fc1", 1), BAD, reason))
    measured = report(
        710, "CULLED", seed("fc1", 1), gain=0.001, standard_error=0.006, control=training_pb2.CONTROL_TWIN
    )
    yield answer(nothing(720), reports=[measured])
    refused = control_pb2.CommandOutcome(command_id="manual-1", step=730, detail="fc1/0 is FOSSILIZED")
    yield ask(outcome=refused)
    yield ask(note=trainer_pb2.Note(level="warning", source="tolaria", text="a <b>bold</b> note & more"))
    yield ask(job=nursery_pb2.Job(job_id="j", run_id=RUN))
    yield ask(state=packet(900, 0.62))
    yield ask(goodbye=trainer_pb2.Goodbye(step=1000, completed=True))
    yield validation(500, 0.8, "never-grown")
    yield validation(1000, 0.7, "static-final")
    yield pb.RunEvent(run_id=RUN, step=1000, summary=summary())


def _life(step: int) -> Iterator[Message]:
    yield ask(transition=moved("DORMANT", "GERMINATED", step))
    yield ask(transition=moved("DORMANT", "GERMINATED", step, seed("conv"), BAD))
    yield ask(transition=moved("GERMINATED", "LOADING", step))
    yield ask(transition=moved("LOADING", "TRAINING", step + 10))
    yield ask(transition=moved("GERMINATED", "CANCELLED", step + 20, seed("conv"), BAD))
    yield ask(transition=moved("TRAINING", "GRAFTING", step + 20))
    yield ask(progress=progress(step + 30, 0.8, {"fc1/0": 0.5}))
    yield ask(transition=moved("GRAFTING", "STABILIZATION", step + 50))
    yield ask(transition=moved("STABILIZATION", "EVALUATING", step + 60))
