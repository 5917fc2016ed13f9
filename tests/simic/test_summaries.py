"""Sums: equal to the textbook's, whatever the order, and unmeasured is not zero."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.api.common.v1 import seed_pb2
from esper.simic.summaries import Moments, summarise

from .reports import report

NUMBERS = st.floats(-1e3, 1e3)


@given(st.lists(NUMBERS, min_size=1, max_size=50))
def test_moments_are_those_of_the_whole_list(values):
    moments = Moments()
    for value in values:
        moments.add(value)
    assert moments.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    wanted = statistics.variance(values) if len(values) > 1 else 0.0
    assert moments.variance == pytest.approx(wanted, rel=1e-9, abs=1e-6)
    assert moments.variance >= 0


def test_small_differences_of_large_numbers_are_kept():
    moments = Moments()
    for value in (1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16):
        moments.add(value)
    assert moments.variance == pytest.approx(30.0)


def test_kinds_are_apart_and_in_order():
    reports = [
        report(1, gain=0.2, outcome=seed_pb2.SEED_STATE_FOSSILIZED),
        report(2, gain=0.0),
        report(3, layer_kind="Conv2d", isolated_gain=0.5),
        report(4, task_name="a"),
    ]
    first, conv, linear = summarise(reports)
    assert (first.task_name, first.count, first.judged, first.tried) == ("a", 1, 0, 0)
    assert (conv.layer_kind, conv.tried, conv.mean_isolated_gain, conv.isolated_gain_variance) == ("Conv2d", 1, 0.5, 0)
    assert (linear.layer_kind, linear.count, linear.fossilised, linear.judged) == ("Linear", 2, 1, 2)
    assert (linear.mean_gain, linear.gain_variance) == (pytest.approx(0.1), pytest.approx(0.02))


def test_unmeasured_is_not_zero_and_not_a_number_is_unmeasured():
    (summary,) = summarise([report(1), report(2, gain=math.nan), report(3, gain=math.inf), report(4, gain=0.5)])
    assert (summary.count, summary.judged, summary.mean_gain) == (4, 1, 0.5)


@given(st.lists(st.tuples(st.sampled_from("ab"), NUMBERS), max_size=20), st.randoms())
def test_order_does_not_matter(rows, rng):
    reports = [report(i, family=family, gain=gain) for i, (family, gain) in enumerate(rows)]
    shuffled = rng.sample(reports, len(reports))
    for one, other in zip(summarise(reports), summarise(shuffled), strict=True):
        assert (one.family, one.count) == (other.family, other.count)
        assert one.mean_gain == pytest.approx(other.mean_gain, abs=1e-9)
