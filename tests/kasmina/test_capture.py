"""When a captured step is captured again: the decision, without a device."""

import pytest
import torch

from esper.errors import InvalidRequest, Unavailable
from esper.kasmina.capture import Move, Plan, capture, check_inputs, picture, what_changed
from esper.kasmina.lifecycle import State
from tests import builders


@pytest.fixture
def grown():
    handle = builders.handle()
    seed = builders.lead(handle.executor, State.GRAFTING, handle.optimizer)
    return handle.executor, handle.optimizer, seed


def seen(executor, *inputs):
    return picture(executor, inputs or (builders.rows(),))


def test_a_ramp_training_and_other_states_of_the_same_grafts_change_nothing(grown):
    executor, optimizer, seed = grown
    builders.train(executor.model, optimizer, [builders.rows()])
    before = seen(executor)
    for step in (12, 13, 14):
        executor.step_ramps(step)
        builders.train(executor.model, optimizer, [builders.rows(seed=step)])
    assert executor.table[seed].state is State.STABILIZATION
    executor.advance(seed, State.EVALUATING, 15, "test")
    assert what_changed(before, seen(executor, builders.rows(seed=9))) == ""


CHANGES = {
    "insert": (
        lambda e, o, s: (
            setattr(e, "max_live", 2),
            builders.lead(e, State.GRAFTING, o, seed=builders.first_seed(e, 1)),
        ),
        "seeds entered, left",
    ),
    "cull": (lambda e, o, s: e.cull(s, o, 20, "test"), "seeds entered, left"),
    "settle": (lambda e, o, s: e.grafts[s].settle(), "or settled"),
    "form": (lambda e, o, s: e.grafts[s].use_form(lambda h, *_: h), "form was swapped"),
    "dtype": (lambda e, o, s: e.model.double(), "the model's tensors"),
    "freeze": (lambda e, o, s: e.grafts[s].requires_grad_(False), "the model's tensors"),
    "eval": (lambda e, o, s: e.model.eval(), "training and evaluation"),
    "table": (
        lambda e, o, s: setattr(e.table, "layout", e.table.layout.__class__.make(2, torch.device("cpu"))),
        "the seed table",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_launches_of_a_step_is_seen_and_named(grown, name):
    executor, optimizer, seed = grown
    before = seen(executor)
    change, said = CHANGES[name]
    change(executor, optimizer, seed)
    assert said in what_changed(before, seen(executor))


def test_a_graft_that_came_back_in_anothers_place_is_another(grown):
    executor, optimizer, seed = grown
    before = seen(executor)
    executor.cull(seed, optimizer, 20, "test")
    executor.table.move(executor.table[seed], State.DORMANT, 400, "test")
    builders.lead(executor, State.GRAFTING, optimizer, step=401)
    assert "seeds entered" in what_changed(before, seen(executor))


@pytest.mark.parametrize("other", [builders.rows(3), builders.rows().double(), builders.rows().to("meta")])
def test_inputs_of_another_shape_dtype_or_device_are_named(grown, other):
    executor, _, _ = grown
    said = what_changed(seen(executor), seen(executor, other))
    assert said == (
        f"inputs are ['{other.dtype}{list(other.shape)} on {other.device}'] and were ['torch.float32[4, 5] on cpu']"
    )


def test_each_call_is_one_move_and_a_change_begins_with_a_warm_up(grown):
    executor, optimizer, seed = grown
    plan = Plan(warmups=2)
    warm_up = [Move.RUN, Move.RUN, Move.CAPTURE, Move.REPLAY, Move.REPLAY]
    assert [plan.next(seen(executor)) for _ in range(5)] == warm_up
    assert (plan.captures, plan.reason) == (1, "nothing is captured yet")
    executor.hold_alpha(seed, 0.25)
    assert plan.next(seen(executor)) is Move.REPLAY
    executor.cull(seed, optimizer, 20, "test")
    assert [plan.next(seen(executor)) for _ in range(5)] == warm_up
    assert plan.captures == 2 and "left" in plan.reason


def test_a_change_within_a_warm_up_begins_it_again(grown):
    executor, _, _ = grown
    plan = Plan(warmups=2)
    plan.next(seen(executor))
    executor.model.eval()
    assert [plan.next(seen(executor)) for _ in range(3)] == [Move.RUN, Move.RUN, Move.CAPTURE]
    plan.forget()
    assert plan.next(seen(executor)) is Move.RUN


def test_without_a_device_it_says_so_and_what_to_do(grown, monkeypatch):
    executor, _, _ = grown
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="torch sees none; call the step itself"):
        capture(executor.model, executor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(Unavailable, match="the model is on cpu; move it"):
        capture(executor.model, executor)


def test_bad_arguments_are_named(grown):
    executor, _, _ = grown
    with pytest.raises(InvalidRequest, match="warmups is 0"):
        capture(executor.model, executor, warmups=0)
    with pytest.raises(InvalidRequest, match="input 1 of a captured step is a float"):
        check_inputs((builders.rows(), 0.5))
