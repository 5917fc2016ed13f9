"""A damaged seed table: what is seen, by name, and what a record is replaced by."""

import math

import pytest
import torch

from esper.kasmina.integrity import Damage, inspect_table, likely_state
from esper.kasmina.lifecycle import State
from tests import builders


def inspect(executor):
    return inspect_table(executor.table, executor.grafts)


def led_to(state):
    executor = builders.executor()
    optimizer = builders.adam(executor.model)
    return executor, optimizer, executor.table[builders.lead(executor, state, optimizer)]


@pytest.mark.parametrize("state", State)
def test_every_state_that_is_reached_in_order_is_sound(state):
    executor, _, seed = led_to(state)
    assert seed.state is state
    assert inspect(executor) == (Damage(), "")


def test_a_kept_fossil_and_a_charged_seed_are_sound():
    executor, optimizer, seed = led_to(State.FINE_TUNING)
    executor.table.charge(seed)
    executor.fossilise(seed.id, optimizer, 50, "led", freeze=True)
    assert seed.id in executor.grafts and inspect(executor) == (Damage(), "")


@pytest.mark.parametrize(
    ("tensor", "value", "said"),
    [
        ("lifecycle_states", 200, "state 200 instead of 6"),
        ("alpha_blend", math.nan, "alpha nan instead of 1"),
        ("alpha_blend", -0.5, "alpha -0.5 instead of 1"),
        ("alpha_blend", 0.5, "alpha 0.5 instead of 1"),
        ("state_steps", -3, "step -3 instead of 14"),
        ("error_counts", 9, "error count 9 instead of 0"),
        ("ramp_begins", 99, "first step of its ramp 99 instead of {begin}"),
        ("ramp_steps", -1, "length of its ramp -1 instead of {length}"),
        ("ages", -7, "age -7 instead of {age}"),
    ],
)
def test_what_the_device_has_instead_is_named_and_written_again(tensor, value, said):
    executor, _, seed = led_to(State.STABILIZATION)
    said = said.format(begin=seed.inserted_step, length=seed.ramp_steps, age=executor.table.age(seed))
    column = getattr(executor.table.layout, tensor)
    good = column.clone()
    column[seed.index] = value
    assert inspect(executor) == (Damage(stale=(seed.id,)), f"the device has {said} for seed {seed.id}")
    executor.table.rewrite(seed)
    assert torch.equal(column, good) and inspect(executor) == (Damage(), "")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("state", 0, "state 0, which does not exist"),
        ("state", 13, "state 13, which does not exist"),
        ("state", State.TRAINING, "state TRAINING and a graft in the model"),
        ("folded", True, "state STABILIZATION and a graft in the model"),
        ("alpha", math.nan, "alpha nan, which is not within [0, 1]"),
        ("alpha", math.inf, "alpha inf, which is not within [0, 1]"),
        ("alpha", -1e-9, "alpha -1e-09, which is not within [0, 1]"),
        ("alpha", 1.0001, "alpha 1.0001, which is not within [0, 1]"),
        ("state_step", -1, "step -1 and 0 errors, which cannot be negative"),
        ("errors", -1, "step 14 and -1 errors, which cannot be negative"),
        ("inserted_step", -1, "a ramp of {length} steps from step -1, which cannot be negative"),
        ("ramp_steps", -2, "a ramp of -2 steps from step {begin}, which cannot be negative"),
    ],
)
def test_a_record_that_cannot_be_is_named_and_mended(field, value, said):
    executor, _, seed = led_to(State.STABILIZATION)
    said = said.format(begin=seed.inserted_step, length=seed.ramp_steps)
    setattr(seed, field, value)
    assert inspect(executor) == (Damage(impossible=(seed.id,)), f"the record of seed {seed.id} has {said}")
    seed.folded = False
    executor.mend([seed.id], 20)
    assert (seed.state, seed.alpha, seed.state_step, seed.errors) == (State.GRAFTING, 0.0, 20, 0)
    assert inspect(executor) == (Damage(), "")


def test_a_wrong_step_of_a_ramp_is_named_and_written_again():
    executor, _, seed = led_to(State.GRAFTING)
    good = executor.table.step
    executor.table.layout.step.fill_(7_000)
    said = f"the device has step 7000 of its ramp instead of {good} for seed {seed.id}"
    assert inspect(executor) == (Damage(stale=(seed.id,)), said)
    executor.table.rewrite(seed)
    assert inspect(executor) == (Damage(), "")


def test_a_graft_that_is_not_there_is_missed():
    executor, _, seed = led_to(State.DORMANT)
    seed.state = State.EVALUATING
    assert inspect(executor)[1] == f"the record of seed {seed.id} has state EVALUATING and no graft in the model"


@pytest.mark.parametrize("state", State)
def test_a_lost_state_is_told_from_the_graft_and_from_what_the_seed_carries(state):
    executor, _, seed = led_to(state)
    graft = executor.grafts.get(seed.id)
    found = likely_state(seed, graft.settled if graft else None)
    if state in (State.GRAFTING, State.STABILIZATION, State.EVALUATING, State.FINE_TUNING):
        assert found is State.GRAFTING
    elif state is State.FOSSILIZED:
        assert found is State.FOSSILIZED
    else:
        assert found is (State.GERMINATED if seed.artifact_id else State.DORMANT)


def test_both_kinds_at_once_are_both_named():
    executor, _, seed = led_to(State.STABILIZATION)
    other = executor.table.seeds[1 - seed.index]
    seed.alpha = 2.0
    executor.table.layout.state_steps[other.index] = 77
    damage, reason = inspect(executor)
    assert damage == Damage((seed.id,), (other.id,))
    assert reason.count("; ") == 1
