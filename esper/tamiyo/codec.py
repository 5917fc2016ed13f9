"""Tamiyo's messages <-> what its decisions read."""

import hashlib
import math
from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import interface_pb2, seed_pb2, training_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2, telemetry_pb2
from esper.api.simic.v1 import replay_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.api.tolaria.v1 import state_pb2
from esper.api.urza.v1 import library_pb2
from esper.errors import InvalidConfig, InvalidRequest
from esper.stats.paired import Paired
from esper.stats.verdict import Rule
from esper.tamiyo.actions import Act, Advance, Cull, Decided, Germinate, Insert, Judged, Order, Plan, Weighed
from esper.tamiyo.ends import Ended
from esper.tamiyo.view import (
    CurveView,
    Experience,
    Limits,
    MeasureView,
    Option,
    RollbackView,
    RunView,
    Scheme,
    SeedKey,
    SeedView,
    SiteView,
    TrialView,
)

_KINDS = {
    Act.NONE: pb.DECISION_KIND_NONE,
    Act.ADD_SEED: pb.DECISION_KIND_ADD_SEED,
    Act.REMOVE_SEED: pb.DECISION_KIND_REMOVE_SEED,
    Act.MODIFY: pb.DECISION_KIND_MODIFY,
    Act.OPTIMIZE: pb.DECISION_KIND_OPTIMIZE,
}
_CONTROLS = {"twin": training_pb2.CONTROL_TWIN, "ablation": training_pb2.CONTROL_ABLATION}
# Readings that decisions may look at; counts are left out.
_HEALTH = frozenset(
    (
        "activation_mean",
        "activation_variance",
        "dead_ratio",
        "zero_ratio",
        "activation_entropy",
        "activation_abs_max",
        "gradient_norm",
        "gradient_variance",
    )
)
_STRATEGIES = {"": 1, "residual": 1, "convex": 2, "gated": 3}
_MAX_REASON = 2048  # characters of a command's reason


def interface_key(message: interface_pb2.Interface) -> str:
    """One string per interface, the same for equal ones."""
    kind = interface_pb2.TensorKind.Name(message.kind).removeprefix("TENSOR_KIND_").lower()
    element = interface_pb2.ElementType.Name(message.element_type).removeprefix("ELEMENT_TYPE_").lower()
    return f"{kind}[{message.channels}] {element}" + (" causal" if message.causal else "")


def read_packet(msg: state_pb2.SystemStatePacket) -> RunView:
    """One decision point as values. Raises InvalidRequest for what no run writes, InvalidConfig for a setting."""
    trials = [result for result in msg.results if result.HasField("trial")]
    return RunView(
        run_id=msg.run_id,
        sequence=msg.sequence,
        step=msg.step,
        total_steps=msg.total_steps,
        task_name=msg.task_name,
        train_loss=msg.train_loss,
        validation_loss=msg.validation_loss if msg.HasField("validation_loss") else None,
        validation_step=msg.validation_step,
        best_validation_loss=msg.best_validation_loss if msg.HasField("best_validation_loss") else None,
        best_validation_step=msg.best_validation_step,
        sites=tuple(_read_site(site) for site in msg.sites),
        seeds=tuple(_read_seed(seed) for seed in msg.seeds),
        trials=tuple(_read_trial(result) for result in trials),
        measures=tuple(m for m in (_read_measure(result) for result in msg.results) if m is not None),
        rollbacks=tuple(_read_rollback(rollback) for rollback in msg.rollbacks),
        parameters=msg.spending.parameters,
        initial_parameters=msg.spending.initial_parameters,
        train_flops=msg.spending.train_flops,
        nursery_flops=msg.spending.nursery_flops,
        events=msg.spending.events,
        limits=_read_limits(msg.budget),
        scheme=_read_scheme(msg.settings),
        paused=msg.paused,
        final=msg.final,
        random_seed=msg.random_seed,
    )


def _read_site(msg: state_pb2.SiteState) -> SiteView:
    read = {field.name: float(value) for field, value in msg.health.ListFields() if field.name in _HEALTH}
    health = {name: value for name, value in read.items() if math.isfinite(value)}  # NaN is no measurement
    return SiteView(
        name=msg.name,
        layer_kind=msg.layer_kind,
        interface_key=interface_key(msg.interface),
        channels=msg.interface.channels,
        parameter_count=msg.parameter_count,
        positions=msg.positions,
        health=health,
    )


def _read_seed(msg: telemetry_pb2.SeedStatus) -> SeedView:
    return SeedView(
        key=read_key(msg.seed),
        state=_read_state(msg.state, f"{msg.seed.site}/{msg.seed.slot}"),
        state_step=msg.state_step,
        artifact_id=msg.artifact_id,
        title=msg.title,
        family=msg.family,
        event_id=msg.event_id,
        parameter_count=msg.parameter_count,
        embargo_until_step=msg.embargo_until_step,
        inserted_step=msg.inserted_step,
        folded=msg.folded,
        reason=msg.reason,
    )


def _read_state(number: int, seed: str) -> str:
    if number not in seed_pb2.SeedState.values() or number == seed_pb2.SEED_STATE_UNSPECIFIED:
        raise InvalidRequest(
            f"seed {seed} is in state {number}, which does not exist", {"state.seeds": "unknown state"}
        )
    return seed_pb2.SeedState.Name(seed_pb2.SeedState.ValueType(number)).removeprefix("SEED_STATE_")


def read_key(msg: seed_pb2.SeedRef) -> SeedKey:
    return SeedKey(msg.site, msg.slot)


def parse_key(text: str) -> SeedKey:
    """A seed written as "<site>/<slot>". Raises InvalidRequest for anything else."""
    site, _, slot = text.rpartition("/")
    if not site or not slot.isdecimal():
        raise InvalidRequest(f"{text!r} is no seed; one is written <site>/<slot>")
    return SeedKey(site, int(slot))


def _read_paired(msg: training_pb2.PairedMeasurement) -> Paired:
    return Paired(msg.pairs, msg.mean, msg.control_mean, msg.difference_standard_error)


def _read_trial(msg: nursery_pb2.JobResult) -> TrialView:
    curves = tuple(
        CurveView(
            read_key(curve.seed),
            tuple((point.step, _read_paired(point.losses)) for point in curve.points),
            curve.stopped_early,
            curve.failure.message,
        )
        for curve in msg.trial.curves
    )
    return TrialView(msg.trial.event_id, curves, msg.failure.message)


def _read_measure(msg: nursery_pb2.JobResult) -> MeasureView | None:
    """A measurement with a control; labels are "verdict:<seed>:<round>:<control>" and "probe:<id>:<seed>"."""
    kind, _, rest = msg.measure.label.partition(":")
    paired = _read_paired(msg.measure.paired) if msg.measure.HasField("paired") else None
    if kind == "verdict":
        seed, number, control = (["", "", *rest.rsplit(":", 2)])[-3:]
        if not number.isdecimal() or control not in _CONTROLS:
            raise InvalidRequest(
                f"{msg.measure.label!r} is no verdict; one is labelled verdict:<site>/<slot>:<round>:<twin or ablation>"
            )
        return MeasureView("verdict", parse_key(seed), int(number), control, paired, failure=msg.failure.message)
    if kind == "probe":
        probe_id, _, seed = rest.partition(":")
        return MeasureView("probe", parse_key(seed), 0, "ablation", paired, probe_id, msg.failure.message)
    return None


def _read_rollback(msg: state_pb2.Rollback) -> RollbackView:
    return RollbackView(msg.step, msg.restored_step, msg.reason, tuple(parse_key(seed) for seed in msg.locked_seeds))


def _read_limits(msg: state_pb2.Budget) -> Limits:
    return Limits(
        max_added_parameters=msg.max_added_parameters,
        max_total_flops_ratio=msg.max_total_flops_ratio,
        max_events=msg.max_events,
        max_added_forward_us=msg.max_added_forward_us,
        max_graft_bytes=msg.max_graft_bytes,
    )


def _read_scheme(msg: state_pb2.GrowthSettings) -> Scheme:
    if msg.strategy not in _STRATEGIES:
        known = ", ".join(filter(None, _STRATEGIES))
        raise InvalidConfig(f"no graft strategy {msg.strategy!r}; there are {known}")
    return Scheme(
        policy=msg.policy,
        first_event_step=msg.first_event_step,
        event_spacing_steps=msg.event_spacing_steps,
        nursery_steps=msg.nursery_steps,
        ramp_steps=msg.ramp_steps,
        verdict_steps=msg.verdict_steps,
        fine_tune_steps=msg.fine_tune_steps,
        candidates_per_site=msg.candidates_per_site,
        probe_every_steps=msg.probe_every_steps,
        decision_every_steps=msg.decision_every_steps,
        strategy=_STRATEGIES[msg.strategy],
        ignore_end_of_run=msg.ignore_end_of_run,
        rule=Rule(min_gain=msg.min_gain, min_standard_errors=msg.min_standard_errors),
        ablation_min_gain=msg.ablation_min_gain,
    )


def is_promoted(kernel: library_pb2.Kernel, interface: str) -> bool:
    """Whether the evaluation let a kernel be used at all, and it was made for this interface."""
    fits = kernel.HasField("interface") and interface_key(kernel.interface) == interface
    return fits and kernel.status == library_pb2.KERNEL_STATUS_VALIDATED


def read_option(kernel: library_pb2.Kernel) -> Option:
    return Option(
        artifact_id=kernel.artifact_id,
        blueprint_id=kernel.blueprint_id,
        title=kernel.title,
        family=kernel.family,
        parameter_count=kernel.parameter_count,
        forward_us=kernel.forward_us_p50,
        peak_bytes=kernel.peak_bytes,
    )


def read_experience(msg: replay_pb2.Summary) -> Experience:
    return Experience(
        task_name=msg.task_name,
        layer_kind=msg.layer_kind,
        family=msg.family,
        title=msg.title,
        tried=msg.tried,
        mean_isolated_gain=msg.mean_isolated_gain,
        judged=msg.judged,
        mean_gain=msg.mean_gain,
    )


def write_decision(decided: Decided, view: RunView, number: int, time: Timestamp) -> pb.Decision:
    """The record of one decision; its commands are in the plan."""
    decision_id = f"{view.run_id}/{view.sequence}/{number}"
    commands = [
        _write_command(order, reason, view, decision_id, f"{decision_id}/{i}")
        for i, (order, reason) in enumerate(decided.orders)
    ]
    decision = pb.Decision(
        decision_id=decision_id,
        run_id=view.run_id,
        sequence=view.sequence,
        step=view.step,
        kind=_KINDS[decided.act],
        confidence=decided.confidence,
        urgency=decided.urgency,
        reason=decided.reason,
        policy=view.scheme.policy,
        candidates=[_write_weighed(weighed, view.run_id) for weighed in decided.candidates],
        time=time,
    )
    if decided.plan is not None:
        decision.plan.CopyFrom(_write_plan(decided.plan, commands))
    if decided.verdict is not None:
        decision.verdict.CopyFrom(_write_verdict(decided.verdict, view.run_id))
    return decision


def _write_plan(plan: Plan, commands: Iterable[control_pb2.ControlCommand]) -> pb.Plan:
    return pb.Plan(
        steps=plan.steps,
        preconditions=plan.preconditions,
        undo=plan.undo,
        cooldown_steps=plan.cooldown_steps,
        # parameters and the two moments most optimisers keep, 4 bytes each
        cost=pb.Cost(parameters=plan.parameters, flops=plan.flops, bytes=plan.parameters * 12),
        commands=commands,
    )


def _write_command(
    order: Order, reason: str, view: RunView, decision_id: str, command_id: str
) -> control_pb2.ControlCommand:
    command = control_pb2.ControlCommand(
        command_id=command_id, run_id=view.run_id, issuer="tamiyo", decision_id=decision_id, reason=reason[:_MAX_REASON]
    )
    if isinstance(order, Germinate):
        command.germinate.CopyFrom(_write_germinate(order, view))
    elif isinstance(order, Insert):
        seed = write_key(order.seed, view.run_id)
        command.insert.CopyFrom(control_pb2.Insert(seed=seed, ramp_steps=order.ramp_steps, event_id=order.event_id))
    elif isinstance(order, Advance):
        to = seed_pb2.SeedState.Value(f"SEED_STATE_{order.to}")
        command.advance.CopyFrom(control_pb2.Advance(seed=write_key(order.seed, view.run_id), to=to))
    elif isinstance(order, Cull):
        seed = write_key(order.seed, view.run_id)
        command.cull.CopyFrom(control_pb2.Cull(seed=seed, return_to_twin=order.return_to_twin))
    else:
        command.cancel.CopyFrom(control_pb2.Cancel(seed=write_key(order.seed, view.run_id)))
    return command


def _write_germinate(order: Germinate, view: RunView) -> control_pb2.Germinate:
    assignments = [
        control_pb2.Assignment(
            seed=write_key(key, view.run_id),
            artifact_id=choice.offer.option.artifact_id,
            title=choice.offer.option.title,
            family=choice.offer.option.family,
            strategy=seed_pb2.GraftStrategy.ValueType(view.scheme.strategy),
        )
        for key, choice in order.choices
    ]
    return control_pb2.Germinate(event_id=order.event_id, assignments=assignments, nursery_steps=order.nursery_steps)


def write_key(key: SeedKey, run_id: str) -> seed_pb2.SeedRef:
    return seed_pb2.SeedRef(run_id=run_id, site=key.site, slot=key.slot)


def _write_weighed(weighed: Weighed, run_id: str) -> pb.Candidate:
    return pb.Candidate(
        seed=write_key(weighed.seed, run_id),
        artifact_id=weighed.artifact_id,
        title=weighed.title,
        expected_reward=weighed.expected_reward,
        exploration_bonus=weighed.exploration_bonus,
        isolated_gain=weighed.isolated_gain,
        reason=weighed.reason,
        chosen=weighed.chosen,
    )


def _write_verdict(judged: Judged, run_id: str) -> pb.Verdict:
    return pb.Verdict(
        seed=write_key(judged.seed, run_id),
        keep=judged.keep,
        gain=judged.paired.gain,
        standard_error=judged.paired.gain_standard_error,
        control=_CONTROLS[judged.control],
        measurement=training_pb2.PairedMeasurement(
            pairs=judged.paired.pairs,
            mean=judged.paired.mean,
            control_mean=judged.paired.control_mean,
            difference_standard_error=judged.paired.standard_error,
        ),
        false_keep_rate=judged.false_keep_rate,
        reason=judged.reason,
        confounded=judged.confounded,
        round=judged.round,
    )


def write_report(ended: Ended, view: RunView, time: Timestamp) -> pb.FieldReport:
    """How one seed ended. The id depends on run, seed, event and end alone."""
    tracked = ended.tracked
    identity = f"{view.run_id}/{tracked.key}/{tracked.event_id}/{ended.end_step}".encode()
    report = pb.FieldReport(
        report_id=hashlib.sha256(identity).hexdigest(),
        seed=write_key(tracked.key, view.run_id),
        task_name=view.task_name,
        title=tracked.title,
        family=tracked.family,
        artifact_id=tracked.artifact_id,
        layer_kind=tracked.layer_kind,
        outcome=seed_pb2.SeedState.Value(f"SEED_STATE_{ended.outcome}"),
        germinated_step=tracked.germinated_step,
        end_step=ended.end_step,
        isolated_gains=tracked.isolated_gains,
        isolated_steps=tracked.isolated_steps,
        parameter_count=tracked.parameter_count,
        host_parameter_count=tracked.host_parameter_count,
        features=tracked.features,
        reason=ended.reason,
        time=time,
        confounded=tracked.confounded,
        policy=view.scheme.policy,
    )
    if tracked.isolated_gains:
        report.isolated_gain = sum(tracked.isolated_gains[-2:]) / len(tracked.isolated_gains[-2:])
    if tracked.gain is not None:
        report.gain, report.standard_error = tracked.gain, tracked.standard_error
        report.control = _CONTROLS[tracked.control]
    return report
