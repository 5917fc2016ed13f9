"""Paired comparison and intervals, against scipy and by simulation."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import InvalidRequest, ShapeMismatch
from esper.stats.paired import Paired, bootstrap_interval, compare
from tests import builders

losses = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=3, max_size=30))
def test_the_difference_in_standard_errors_is_the_paired_t_statistic(pairs):
    arm, control = (np.array(side) for side in zip(*pairs, strict=True))
    spread = np.std(control - arm, ddof=1)
    if spread < 1e-3:
        return  # scipy warns of lost precision there
    seen = compare(torch.tensor(arm), torch.tensor(control))
    expected = scipy.stats.ttest_rel(control, arm)
    assert seen.standard_errors == pytest.approx(expected.statistic, rel=1e-6, abs=1e-9)
    assert seen.standard_error == pytest.approx(scipy.stats.sem(control - arm), rel=1e-6)
    assert (seen.pairs, seen.mean, seen.control_mean) == (
        len(arm),
        pytest.approx(arm.mean()),
        pytest.approx(control.mean()),
    )


def test_gain_and_its_error_are_relative_to_the_control():
    seen = compare(torch.tensor([0.9, 1.7]), torch.tensor([1.0, 2.0]))
    assert seen.gain == pytest.approx(0.2 / 1.5)
    assert seen.gain_standard_error == pytest.approx(0.1 / 1.5)
    assert seen.gain / seen.gain_standard_error == pytest.approx(seen.standard_errors)


@given(losses)
def test_an_arm_against_itself_gains_nothing(values):
    values = torch.tensor(values, dtype=torch.float64)
    seen = compare(values, values)
    assert seen.gain == 0 and seen.standard_error == 0 and seen.standard_errors == 0


@given(losses, st.floats(0.01, 10))
def test_a_lower_loss_is_a_gain_even_where_losses_are_negative(values, drop):
    control = torch.tensor(values, dtype=torch.float64)
    seen = compare(control - drop, control)
    assert seen.gain > 0
    assert seen.standard_errors > 0


def test_a_difference_that_never_varies_is_infinitely_many_standard_errors():
    # halves are exact in binary
    control = torch.tensor([1.0, 2.0, 4.0])
    assert compare(control - 0.5, control).standard_errors == math.inf
    assert compare(control + 0.5, control).standard_errors == -math.inf


def test_half_precision_losses_are_reduced_in_double():
    values = torch.full((4096,), 0.1, dtype=torch.bfloat16)
    assert compare(values, values).mean == pytest.approx(float(values[0]), rel=1e-12)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1,), (1,)), ((2, 2), (2, 2)), ((), ()), ((0,), (0,))])
def test_vectors_that_do_not_pair_are_refused_with_their_shapes(shapes):
    with pytest.raises(ShapeMismatch, match=r"paired losses must be two vectors of one length >= 2; got"):
        compare(*(torch.zeros(shape) for shape in shapes))


def test_a_zero_control_does_not_divide_by_zero():
    assert math.isfinite(Paired(2, 0.0, 0.0, 0.0).gain)
    assert builders.paired(control_mean=-2.0, gain=0.1).gain == pytest.approx(0.1)


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(3)
    samples = torch.randn(200, 40, generator=generator) + 1.5
    covered = sum(low <= 1.5 <= high for low, high in (bootstrap_interval(s.tolist(), resamples=400) for s in samples))
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_interval_agrees_with_the_normal_one_and_widens_with_the_level():
    values = torch.randn(400, generator=torch.Generator().manual_seed(5)).tolist()
    low, high = bootstrap_interval(values)
    half = 1.96 * float(np.std(values, ddof=1)) / 20
    assert low == pytest.approx(np.mean(values) - half, abs=0.15 * half)
    assert high == pytest.approx(np.mean(values) + half, abs=0.15 * half)
    wider = bootstrap_interval(values, level=0.99)
    assert wider[0] < low and high < wider[1]


def test_bootstrap_interval_is_a_function_of_its_seed_alone():
    values = torch.rand(40).tolist()
    first = bootstrap_interval(values, seed=1)
    torch.rand(3)
    assert bootstrap_interval(values, seed=1) == first != bootstrap_interval(values, seed=2)
    assert bootstrap_interval([3.0]) == (3.0, 3.0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_bootstrap_interval_refuses_values_it_cannot_resample(values):
    with pytest.raises(InvalidRequest, match="at least one value, all of them finite"):
        bootstrap_interval(values)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_bootstrap_interval_refuses_a_level_that_is_no_probability(level):
    with pytest.raises(InvalidRequest, match=f"level must be between 0 and 1, got {level}"):
        bootstrap_interval([1.0], level=level)
