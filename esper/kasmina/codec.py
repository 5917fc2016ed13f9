"""Kasmina's messages <-> what its decisions read."""

import math

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2, telemetry_pb2
from esper.errors import InvalidRequest
from esper.host.graft import Strategy
from esper.kasmina.executor import Assignment
from esper.kasmina.lifecycle import SeedId, State, Transition
from esper.kasmina.nursery.trial import Curve
from esper.kasmina.regrow import GraftSpec
from esper.kasmina.table import Seed
from esper.stats.paired import Paired

_STRATEGIES = {
    seed_pb2.GRAFT_STRATEGY_UNSPECIFIED: Strategy.RESIDUAL,
    seed_pb2.GRAFT_STRATEGY_RESIDUAL: Strategy.RESIDUAL,
    seed_pb2.GRAFT_STRATEGY_CONVEX: Strategy.CONVEX,
    seed_pb2.GRAFT_STRATEGY_GATED: Strategy.GATED,
}
_STRATEGY_NUMBERS = {strategy: number for number, strategy in _STRATEGIES.items() if number}


def read_seed_id(msg: seed_pb2.SeedRef) -> SeedId:
    return SeedId(msg.site, msg.slot)


def write_seed_id(seed: SeedId, run_id: str) -> seed_pb2.SeedRef:
    return seed_pb2.SeedRef(run_id=run_id, site=seed.site, slot=seed.slot)


def read_strategy(number: seed_pb2.GraftStrategy.ValueType) -> Strategy:
    """Raises InvalidRequest for a strategy nobody knows."""
    if number not in _STRATEGIES:
        raise InvalidRequest(f"graft strategy is {number}; it must be one of {sorted(_STRATEGIES)}")
    return _STRATEGIES[number]


def write_strategy(strategy: Strategy) -> seed_pb2.GraftStrategy.ValueType:
    return _STRATEGY_NUMBERS[strategy]


def read_span(msg: seed_pb2.Span) -> tuple[int, int] | None:
    return (msg.start, msg.stop) if msg.stop else None


def write_span(span: tuple[int, int] | None) -> seed_pb2.Span | None:
    return seed_pb2.Span(start=span[0], stop=span[1]) if span else None


def read_state(number: seed_pb2.SeedState.ValueType) -> State:
    """Raises InvalidRequest for a state nobody knows, UNSPECIFIED among them."""
    if number not in {int(state) for state in State}:
        raise InvalidRequest(f"seed state is {number}; it must be one of {[int(state) for state in State]}")
    return State(number)


def write_state(state: State) -> seed_pb2.SeedState.ValueType:
    return seed_pb2.SeedState.ValueType(int(state))


def read_assignment(msg: control_pb2.Assignment) -> Assignment:
    return Assignment(
        read_seed_id(msg.seed), msg.artifact_id, msg.title, msg.family, read_strategy(msg.strategy), read_span(msg.span)
    )


def write_assignment(assignment: Assignment, run_id: str) -> control_pb2.Assignment:
    return control_pb2.Assignment(
        seed=write_seed_id(assignment.seed, run_id),
        artifact_id=assignment.artifact_id,
        title=assignment.title,
        family=assignment.family,
        strategy=write_strategy(assignment.strategy),
        span=write_span(assignment.span),
    )


def write_transition(transition: Transition, run_id: str) -> seed_pb2.SeedTransition:
    message = seed_pb2.SeedTransition(
        seed=write_seed_id(transition.seed, run_id),
        to=write_state(transition.target),
        step=transition.step,
        reason=transition.reason,
        artifact_id=transition.artifact_id,
    )
    setattr(message, "from", write_state(transition.source))  # a keyword in Python
    return message


def read_graft(msg: seed_pb2.Graft) -> GraftSpec:
    return GraftSpec(
        seed=read_seed_id(msg.seed),
        artifact_id=msg.artifact_id,
        state=read_state(msg.state),
        strategy=read_strategy(msg.strategy),
        span=read_span(msg.span),
        folded=msg.folded,
        inserted_step=msg.inserted_step,
        alpha=msg.alpha,
        blueprint_id=msg.blueprint_id,
        frozen=msg.frozen,
    )


def write_graft(spec: GraftSpec, run_id: str) -> seed_pb2.Graft:
    return seed_pb2.Graft(
        seed=write_seed_id(spec.seed, run_id),
        artifact_id=spec.artifact_id,
        blueprint_id=spec.blueprint_id,
        span=write_span(spec.span),
        strategy=write_strategy(spec.strategy),
        state=write_state(spec.state),
        folded=spec.folded,
        inserted_step=spec.inserted_step,
        alpha=spec.alpha,
        frozen=spec.frozen,
    )


def write_seed(seed: Seed, run_id: str) -> telemetry_pb2.SeedStatus:
    return telemetry_pb2.SeedStatus(
        seed=write_seed_id(seed.id, run_id),
        state=write_state(seed.state),
        state_step=seed.state_step,
        alpha=seed.alpha,
        artifact_id=seed.artifact_id,
        blueprint_id=seed.blueprint_id,
        title=seed.title,
        family=seed.family,
        parameter_count=seed.parameter_count,
        embargo_until_step=seed.embargo_until_step,
        errors=seed.errors,
        event_id=seed.event_id,
        span=write_span(seed.span),
        strategy=write_strategy(seed.strategy),
        inserted_step=seed.inserted_step,
        reason=seed.reason,
        folded=seed.folded,
        ramp_steps=seed.ramp_steps,
        frozen=seed.frozen,
        held=seed.held,
    )


def read_seed(msg: telemetry_pb2.SeedStatus) -> Seed:
    """A record for SeedTable.restore; its index is the table's own."""
    return Seed(
        id=read_seed_id(msg.seed),
        index=-1,
        state=read_state(msg.state),
        state_step=msg.state_step,
        alpha=msg.alpha,
        artifact_id=msg.artifact_id,
        blueprint_id=msg.blueprint_id,
        title=msg.title,
        family=msg.family,
        event_id=msg.event_id,
        parameter_count=msg.parameter_count,
        span=read_span(msg.span),
        strategy=read_strategy(msg.strategy),
        ramp_steps=msg.ramp_steps,
        inserted_step=msg.inserted_step,
        embargo_until_step=msg.embargo_until_step,
        errors=msg.errors,
        folded=msg.folded,
        frozen=msg.frozen,
        held=msg.held,
        reason=msg.reason,
    )


def read_paired(msg: training_pb2.PairedMeasurement) -> Paired:
    return Paired(msg.pairs, msg.mean, msg.control_mean, msg.difference_standard_error)


def write_paired(paired: Paired) -> training_pb2.PairedMeasurement:
    """A standard error that is not a number is written as infinite: the contract bounds it from below."""
    return training_pb2.PairedMeasurement(
        pairs=paired.pairs,
        mean=paired.mean,
        control_mean=paired.control_mean,
        difference_standard_error=math.inf if math.isnan(paired.standard_error) else paired.standard_error,
    )


def write_curve(curve: Curve, run_id: str) -> nursery_pb2.GainCurve:
    message = nursery_pb2.GainCurve(
        seed=write_seed_id(curve.seed, run_id),
        points=[nursery_pb2.GainPoint(step=step, losses=write_paired(paired)) for step, paired in curve.points],
        stopped_early=curve.stopped_early,
    )
    if curve.failure:
        message.failure.code, message.failure.message = 13, curve.failure
    return message


def read_curve(msg: nursery_pb2.GainCurve) -> Curve:
    return Curve(
        seed=read_seed_id(msg.seed),
        points=[(point.step, read_paired(point.losses)) for point in msg.points],
        stopped_early=msg.stopped_early,
        failure=msg.failure.message,
    )
