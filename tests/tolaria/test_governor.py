"""Alarms: what is one, after how many steps, and what never is."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria.governor import Governor, GovernorOptions
from esper.tolaria.step import build_parts, train_step
from esper.tolaria.tasks import digits, tabular, text


def first_alarm(losses, governor=None):
    """(number of losses taken, reason) at the first alarm; (None, "") if there is none."""
    governor = governor or Governor()
    for count, loss in enumerate(losses, 1):
        if reason := governor.see(loss):
            return count, reason
    return None, ""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("before", [0, 1, 49, 200])
def test_a_loss_that_is_not_finite_is_an_alarm_at_once_even_in_the_warm_up(bad, before):
    count, reason = first_alarm([1.0] * before + [bad])
    assert count == before + 1
    assert reason == f"the loss is {bad}"


def test_an_explosion_is_an_alarm_at_its_third_step():
    count, reason = first_alarm([1.0] * 60 + [50.0] * 10)
    assert count == 63
    assert reason == "the loss was over 20 times its mean of 1 for 3 steps, at last 50"


def test_two_exploding_steps_are_forgiven():
    assert first_alarm(([1.0] * 20 + [50.0] * 2) * 10)[0] is None


def test_an_exploding_loss_does_not_raise_the_mean_it_is_held_against():
    governor = Governor()
    first_alarm([1.0] * 60 + [1000.0] * 2, governor)
    assert governor.window.mean == 1.0
    assert governor.window.exploding_steps == 2


def test_a_slow_divergence_is_an_alarm():
    losses = [1.0] * 60 + [1.0 + 0.05 * step for step in range(1000)]
    count, reason = first_alarm(losses)
    assert 200 < count < 400
    assert reason.startswith("the mean loss ") and "4 times its best 1 for 100 steps" in reason


def test_a_run_that_settles_far_above_its_best_is_an_alarm_after_its_hundred_steps():
    options = GovernorOptions(divergence_steps=10)
    count, _ = first_alarm([1.0] * 60 + [10.0] * 500, Governor(options))
    above = next(n for n in range(500) if 10 - 9 * 0.98**n > 4)
    assert count == 60 + above + options.divergence_steps


def test_noise_about_a_tiny_loss_is_no_alarm():
    generator = torch.Generator().manual_seed(0)
    falling = [2.0 * 0.97**step for step in range(300)]
    noise = (torch.rand(3000, generator=generator) ** 4 * 0.2).tolist()
    assert first_alarm(falling + noise)[0] is None


def test_nothing_but_nan_is_an_alarm_in_the_warm_up():
    assert first_alarm([1.0, 1e6] * 25)[0] is None


@given(st.lists(st.floats(0.5, 1.5), min_size=1, max_size=400))
def test_a_bounded_loss_is_never_an_alarm(losses):
    assert first_alarm(losses)[0] is None


@given(st.lists(st.floats(1e-3, 1e3), max_size=150), st.floats(0.25, 4.0).map(lambda x: 2.0 ** round(x)))
def test_the_unit_of_the_loss_does_not_matter(losses, scale):
    assert first_alarm(losses)[0] == first_alarm([loss * scale for loss in losses])[0]


def test_an_alarm_leaves_the_window_as_it_was():
    governor = Governor()
    first_alarm([1.0] * 60 + [100.0] * 2, governor)
    before = repr(governor.window)
    for lost in (100.0, math.nan):
        assert governor.see(lost)
        assert repr(governor.window) == before


@pytest.mark.parametrize("make", [digits.task, tabular.task, text.task], ids=["digits", "tabular", "text"])
def test_the_tasks_own_losses_are_no_alarm(make):
    task = make(seed=1)
    steps = 100 if task.name == "text" else 300
    parts = build_parts(task)
    losses = [float(train_step(parts, task, task.micro_batches(step))) for step in range(steps)]
    assert losses[-1] < losses[0]
    assert first_alarm(losses)[0] is None
