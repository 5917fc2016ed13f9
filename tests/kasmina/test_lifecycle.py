"""The table of moves, against the specification's own words."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.api.common.v1 import seed_pb2
from esper.errors import IllegalTransition
from esper.kasmina.lifecycle import ALLOWED, BEFORE_HOST, IN_HOST, LIVE, SeedId, State, check
from esper.kasmina.schedule import ramp

SEED = SeedId("conv1", 0)
# Written out once more, so that an edit of the table has to be made twice.
MOVES = """
DORMANT > GERMINATED
GERMINATED > LOADING CANCELLED ROLLED_BACK
LOADING > TRAINING GRAFTING CULLED CANCELLED ROLLED_BACK
TRAINING > GRAFTING CULLED CANCELLED ROLLED_BACK
GRAFTING > STABILIZATION CULLED ROLLED_BACK
STABILIZATION > EVALUATING CULLED ROLLED_BACK
EVALUATING > FINE_TUNING FOSSILIZED CULLED ROLLED_BACK
FINE_TUNING > FOSSILIZED CULLED ROLLED_BACK
FOSSILIZED > CULLED ROLLED_BACK
CULLED > DORMANT ROLLED_BACK
CANCELLED > DORMANT ROLLED_BACK
ROLLED_BACK > DORMANT
"""
WANTED = {
    (State[source], State[target])
    for source, targets in (line.split(" > ") for line in MOVES.strip().splitlines())
    for target in targets.split()
}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(State, State)))
def test_a_move_is_allowed_exactly_where_the_specification_says_so(source, target):
    if (source, target) in WANTED:
        check(SEED, source, target)
    else:
        with pytest.raises(IllegalTransition) as refused:
            check(SEED, source, target)
        message = str(refused.value)
        assert message.startswith(f"seed conv1/0 is {source.name} and cannot become {target.name}; it may become ")
        assert all(allowed.name in message for allowed in ALLOWED[source])


def reachable(state):
    found, waiting = {state}, [state]
    while waiting:
        new = ALLOWED[waiting.pop()] - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("state", State)
def test_no_state_is_a_dead_end(state):
    later = {State.DORMANT, State.FOSSILIZED, State.ROLLED_BACK} & reachable(state)
    assert State.DORMANT in later  # and a seed can be used again from anywhere
    assert ALLOWED[state]


def test_every_state_can_be_reached():
    assert reachable(State.DORMANT) == set(State)


def test_groups_of_states_do_not_overlap_and_numbers_are_the_contracts():
    assert LIVE < IN_HOST and not IN_HOST & BEFORE_HOST
    assert sorted(IN_HOST - LIVE) == [State.FOSSILIZED]
    assert {s.name: int(s) for s in State} == {
        name.removeprefix("SEED_STATE_"): number
        for name, number in seed_pb2.SeedState.items()
        if name != "SEED_STATE_UNSPECIFIED"
    }


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(-5, 10**4))
def test_a_ramp_stays_between_0_and_1_and_never_falls(step, start, length):
    alpha = ramp(step, start, length)
    assert 0 <= alpha <= 1
    assert ramp(step + 1, start, length) >= alpha


def test_a_ramp_is_linear_from_the_first_step_on():
    assert [ramp(step, 100, 4) for step in (99, 100, 101, 102, 103, 104, 105)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert ramp(100, 100, 0) == 1
