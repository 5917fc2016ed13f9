"""Kasmina's records, there and back."""

import math

import protovalidate
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2, telemetry_pb2
from esper.errors import InvalidRequest
from esper.host.graft import Strategy
from esper.kasmina import codec
from esper.kasmina.executor import Assignment
from esper.kasmina.lifecycle import SeedId, State, Transition
from esper.kasmina.nursery.trial import Curve
from esper.kasmina.regrow import GraftSpec
from esper.kasmina.table import Seed
from esper.stats.paired import Paired, compare
from esper.stats.verdict import Rule, judge

RUN = "run-1"
names = st.text(min_size=1, max_size=20)
steps = st.integers(0, 2**40)
small = st.integers(0, 2**31 - 1)
# alpha is a float on the wire
shares = st.floats(0, 1, width=32)
spans = st.none() | st.tuples(st.integers(0, 100), st.integers(101, 200))
seed_ids = st.builds(SeedId, names, st.integers(0, 1000))
strategies = st.sampled_from(Strategy)
states = st.sampled_from(State)
numbers = st.floats(allow_nan=False, width=32)
measured = st.builds(Paired, small, numbers, numbers, numbers)


@given(st.builds(Assignment, seed_ids, names, names, names, strategies, spans))
def test_assignments(assignment):
    assert codec.read_assignment(codec.write_assignment(assignment, RUN)) == assignment


@given(
    st.builds(
        GraftSpec,
        seed_ids,
        names,
        states,
        strategies,
        spans,
        st.booleans(),
        steps,
        shares,
        names,
        frozen=st.booleans(),
    )
)
def test_grafts(spec):
    assert codec.read_graft(codec.write_graft(spec, RUN)) == spec


@given(
    st.builds(
        Seed,
        id=seed_ids,
        index=st.just(-1),
        state=states,
        state_step=steps,
        alpha=shares,
        artifact_id=names,
        blueprint_id=names,
        title=names,
        family=names,
        event_id=names,
        parameter_count=steps,
        span=spans,
        strategy=strategies,
        ramp_steps=small,
        inserted_step=steps,
        embargo_until_step=steps,
        errors=small,
        folded=st.booleans(),
        frozen=st.booleans(),
        held=st.booleans(),
        reason=names,
    )
)
def test_seeds(seed):
    assert codec.read_seed(codec.write_seed(seed, RUN)) == seed


@given(measured)
def test_measurements(paired):
    assert codec.read_paired(codec.write_paired(paired)) == paired


def test_a_measurement_that_is_not_finite_keeps_the_contract_and_is_never_kept():
    message = codec.write_paired(compare(torch.tensor([math.nan, 1.0]), torch.ones(2)))
    protovalidate.validate(message)
    assert not judge(codec.read_paired(message), Rule())[0]


@given(st.builds(Curve, seed_ids, st.lists(st.tuples(small, measured), max_size=4), st.booleans(), st.just("") | names))
def test_curves(curve):
    assert codec.read_curve(codec.write_curve(curve, RUN)) == curve


def test_a_transition_names_both_states_and_its_reason():
    moved = Transition(SeedId("conv1", 2), State.TRAINING, State.GRAFTING, 41, "best of four", "k")
    message = codec.write_transition(moved, RUN)
    assert getattr(message, "from") == seed_pb2.SEED_STATE_TRAINING and message.to == seed_pb2.SEED_STATE_GRAFTING
    assert (message.step, message.reason, message.artifact_id) == (41, "best of four", "k")
    assert (message.seed.run_id, message.seed.site, message.seed.slot) == (RUN, "conv1", 2)


def test_a_strategy_left_out_is_residual():
    message = control_pb2.Assignment(seed=seed_pb2.SeedRef(site="a"))
    assert codec.read_assignment(message).strategy is Strategy.RESIDUAL


@pytest.mark.parametrize(
    "read",
    [
        lambda: codec.read_strategy(99),
        lambda: codec.read_state(0),
        lambda: codec.read_graft(seed_pb2.Graft()),
        lambda: codec.read_seed(telemetry_pb2.SeedStatus(state=77)),
    ],
)
def test_numbers_nobody_knows_are_refused_with_those_there_are(read):
    with pytest.raises(InvalidRequest, match=r"is \d+; it must be one of \[\d"):
        read()


def test_a_failed_curve_carries_a_code():
    message = codec.write_curve(Curve(SeedId("a", 0), failure="raised"), RUN)
    assert message.failure.code == 13
    assert not nursery_pb2.GainCurve().failure.code
