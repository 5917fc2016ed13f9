"""Alarms: what is one, after how many steps, and what never is."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria.governor import Governor, GovernorOptions, LossWindow, is_steady
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


def noise(count, level, spread, seed=0):
    """Losses of mean `level` with a long upper tail."""
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed)).log().neg()
    return (level + spread * (drawn - 1)).tolist()


def learned(first=2.3, last=0.5, steps=400, spread=0.1):
    """A loss that falls from `first` to `last` with noise upon it."""
    wave = noise(steps, 0.0, spread)
    return [last + (first - last) * 0.98**step + wave[step] for step in range(steps)]


def test_a_loss_that_is_back_where_training_began_is_an_alarm():
    before = learned()
    count, reason = first_alarm(before + noise(1000, 2.3, 0.1, seed=1))
    assert len(before) + 100 < count <= len(before) + 140
    assert reason.startswith("the output has collapsed: the mean loss ")
    assert "has for 100 steps lost over 50% of what it had won from " in reason


def test_a_constant_guess_better_than_the_first_one_is_seen_later():
    before = learned(first=4.0, last=2.0)  # of which the warm-up wins 1: as text, which learns its letters' frequencies
    count, reason = first_alarm(before + [3.1] * 1000)
    assert len(before) + 140 < count <= len(before) + 200
    assert "collapsed" in reason


def test_a_collapse_that_heals_is_no_alarm():
    healed = [0.5 + 1.8 * 0.95**step for step in range(1000)]
    assert first_alarm(learned() + [2.3] * 60 + healed)[0] is None


def test_a_collapse_is_counted_from_when_half_is_lost():
    governor = Governor(GovernorOptions(collapse_steps=10))
    assert first_alarm(learned(spread=0.0), governor)[0] is None
    window = governor.window
    while window.mean - window.best_mean <= 0.5 * (window.first_mean - window.best_mean):
        assert not governor.see(2.3)
    assert window.collapsed_steps == 1
    assert first_alarm([2.3] * 20, governor)[0] == 10


@pytest.mark.parametrize("spread", [0.01, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("won", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_noise_is_no_collapse_however_little_was_won(spread, won, seed):
    falling = [won * 0.97**step for step in range(3000)]
    losses = [4.0 + a + b for a, b in zip(falling, noise(3000, 0.0, spread, seed), strict=True)]
    assert first_alarm(losses)[0] is None


@pytest.mark.parametrize("level", [0.0, -0.001, -0.5, -1.0, -100.0])
def test_a_loss_about_zero_or_below_is_no_alarm(level):
    assert first_alarm(noise(2000, level, 0.1))[0] is None
    assert first_alarm([3.0 + level * (1 - 0.99**step) for step in range(2000)])[0] is None


def test_a_negative_loss_can_explode_and_diverge():
    assert first_alarm([-1.0] * 60 + [30.0] * 10)[0] == 63
    assert "times its best" in first_alarm([-1.0] * 60 + [-1.0 + 0.05 * step for step in range(1000)])[1]


@given(st.lists(st.floats(0.5, 1.5), min_size=60, max_size=150), st.integers(-8, 8))
def test_where_zero_is_does_not_matter_to_a_collapse(losses, shift):
    options = GovernorOptions(explosion_factor=1e9, divergence_factor=1e9, collapse_steps=3, collapse_noise=0.1)
    exact = [round(loss * 64) / 64 for loss in losses]
    windows = []
    for moved in (0, shift):
        governor = Governor(options)
        first_alarm([loss + moved for loss in exact], governor)
        windows.append(governor.window)
    assert abs(windows[0].collapsed_steps - windows[1].collapsed_steps) <= 1
    assert windows[0].noise == pytest.approx(windows[1].noise)


def test_a_window_is_steady_until_the_mean_rises():
    governor = Governor()
    assert is_steady(LossWindow())
    for loss in learned():
        governor.see(loss)
        assert is_steady(governor.window)
    for _ in range(19):
        governor.see(2.3)
    assert not is_steady(governor.window)  # or a point taken after the fall would be certified


def test_a_window_that_was_written_down_goes_on_as_it_would_have():
    losses = learned() + [2.3] * 300
    count, reason = first_alarm(losses)
    before = Governor()
    assert first_alarm(losses[: count - 20], before)[0] is None
    after = Governor(window=LossWindow(**json.loads(json.dumps(asdict(before.window)))))
    assert first_alarm(losses[count - 20 :], after) == (20, reason)


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


TASKS = {"digits": (digits.task, 300, 1000), "tabular": (tabular.task, 300, 3000), "text": (text.task, 100, 500)}


def losses_of(name, seed, steps):
    task = TASKS[name][0](seed=seed)
    parts = build_parts(task)
    losses = [float(train_step(parts, task, task.micro_batches(step))) for step in range(steps)]
    assert losses[-1] < losses[0]
    return losses


@pytest.mark.parametrize("name", TASKS)
def test_the_tasks_own_losses_are_no_alarm(name):
    assert first_alarm(losses_of(name, 1, TASKS[name][1]))[0] is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TASKS)
def test_the_tasks_own_losses_are_never_near_a_collapse(name, seed):
    governor = Governor()
    for loss in losses_of(name, seed, TASKS[name][2]):
        assert governor.see(loss) == ""
        assert governor.window.collapsed_steps == governor.window.diverging_steps == 0
