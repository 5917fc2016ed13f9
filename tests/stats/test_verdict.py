"""Keep or remove."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from esper.stats.paired import Paired, compare
from esper.stats.verdict import Rule, judge, nominal_false_keep_rate, probability_above
from tests import builders

finite = st.floats(-10, 10)
positive = st.floats(0, 5)
rules = st.builds(Rule, min_gain=st.floats(0, 0.2), min_standard_errors=st.floats(0, 3))


def kept(seen, rule):
    return judge(seen, rule)[0]


@given(finite, st.floats(0.1, 10), positive, st.floats(0, 5), rules)
def test_a_lower_loss_never_turns_keep_into_remove(mean, control, error, drop, rule):
    before, after = (Paired(100, m, control, error) for m in (mean, mean - drop))
    assert kept(after, rule) >= kept(before, rule)


@given(finite, finite, positive, st.floats(0, 5), rules)
def test_more_noise_never_turns_remove_into_keep(mean, control, error, extra, rule):
    before, after = (Paired(100, mean, control, e) for e in (error, error + extra))
    assert kept(after, rule) <= kept(before, rule)


@given(finite, finite, positive, rules, st.floats(0, 0.1), st.floats(0, 2))
def test_a_stricter_rule_keeps_no_more(mean, control, error, rule, more_gain, more_errors):
    stricter = Rule(min_gain=rule.min_gain + more_gain, min_standard_errors=rule.min_standard_errors + more_errors)
    seen = Paired(100, mean, control, error)
    assert kept(seen, stricter) <= kept(seen, rule)


@given(finite, finite, positive, rules)
def test_what_does_not_gain_is_never_kept(mean, control, error, rule):
    assume(mean >= control)
    assert not kept(Paired(100, mean, control, error), rule)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["mean", "control_mean", "standard_error"])
def test_a_number_that_is_not_finite_is_never_kept(bad, place):
    values = {"pairs": 100, "mean": 0.5, "control_mean": 1.0, "standard_error": 0.01} | {place: bad}
    keep, reason = judge(Paired(**values), Rule(min_gain=-1e9, min_standard_errors=-1e9))
    assert not keep
    assert "not finite" in reason and str(bad) in reason


def test_losses_so_far_apart_that_their_spread_overflows_are_not_kept():
    arm = torch.tensor([-1e308, 0.0], dtype=torch.float64)
    seen = compare(arm, -arm)
    assert math.isfinite(seen.mean) and not math.isfinite(seen.standard_error)
    assert not kept(seen, Rule())


def test_the_reason_names_gain_error_pairs_and_limits():
    keep, reason = judge(builders.paired(gain=0.05, standard_errors=2.5, pairs=250), Rule())
    assert keep
    assert reason == "held-out gain +5.00% ± 2.00% over 250 examples (limits 1.0% and 1 standard errors)"
    assert judge(builders.paired(gain=0.005), Rule())[1].endswith(": too small")
    assert judge(builders.paired(standard_errors=0.5), Rule())[1].endswith(": within the noise")


def test_a_gain_exactly_at_a_limit_is_not_above_it():
    at_gain = Paired(100, 0.75, 1.0, 0.01)
    assert not kept(at_gain, Rule(min_gain=0.25))
    assert kept(at_gain, Rule(min_gain=0.249))
    assert not kept(Paired(100, 0.5, 1.0, 0.25), Rule(min_standard_errors=2.0))


@pytest.mark.parametrize("standard_errors", [0.5, 1.0, 2.0])
def test_the_nominal_rate_is_how_often_a_useless_graft_is_kept(standard_errors):
    rule = Rule(min_gain=0.0, min_standard_errors=standard_errors)
    generator = torch.Generator().manual_seed(11)
    trials, pairs = 2000, 200
    control = 5 + torch.randn(trials, pairs, generator=generator)
    arm = control + torch.randn(trials, pairs, generator=generator)
    rate = sum(kept(compare(a, c), rule) for a, c in zip(arm, control, strict=True)) / trials
    expected = nominal_false_keep_rate(rule)
    assert rate == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / trials))


def test_the_default_rule_keeps_fewer_useless_grafts_than_the_nominal_rate():
    generator = torch.Generator().manual_seed(12)
    control = 1 + 0.5 * torch.rand(1000, 250, generator=generator)
    arm = control + 0.1 * torch.randn(1000, 250, generator=generator)
    rate = sum(kept(compare(a, c), Rule()) for a, c in zip(arm, control, strict=True)) / 1000
    assert rate < nominal_false_keep_rate(Rule()) == pytest.approx(0.1587, abs=1e-4)


@pytest.mark.parametrize(
    ("seen", "gain", "probability"),
    [
        (Paired(100, 0.9, 1.0, 0.1), 0.0, 0.8413),  # one standard error above
        (Paired(100, 0.9, 1.0, 0.1), 0.1, 0.5),
        (Paired(100, 1.8, 2.0, 0.1), 0.2, 0.0228),  # two below
        (Paired(100, 0.9, 1.0, 0.0), 0.05, 1.0),
        (Paired(100, 0.9, 1.0, 0.0), 0.15, 0.0),
        (Paired(100, math.nan, 1.0, 0.1), 0.0, 0.5),
        (Paired(100, 0.9, 1.0, math.inf), 0.0, 0.5),
    ],
)
def test_the_probability_of_a_gain_is_that_of_a_normal_difference(seen, gain, probability):
    assert probability_above(seen, gain) == pytest.approx(probability, abs=1e-4)


@given(finite, finite, positive, rules)
def test_what_is_kept_is_worth_it_more_likely_than_not(mean, control, error, rule):
    seen = Paired(100, mean, control, error)
    assert not kept(seen, rule) or probability_above(seen, rule.min_gain) >= 0.5
