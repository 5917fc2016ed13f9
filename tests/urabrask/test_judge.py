"""The rule of promotion, and the words a kernel gets."""

from dataclasses import replace

import pytest

from esper.urabrask.judge import Checked, Measured, judge, tags

EXPECTED = ("form", "shape", "latency")
PASSED = tuple(Checked(name, True, "fine") for name in EXPECTED)
PLAIN = Measured(
    forward_ratio=1.0,
    spread=0.2,
    runs=50,
    peak_bytes=1000,
    reference_peak_bytes=1000,
    gradient_reading=0.5,
    parameter_count=1 << 20,
)


def test_what_passed_everything_in_isolation_is_promoted():
    verdict = judge(PASSED, EXPECTED, PLAIN, "network namespace")
    assert verdict.passed
    assert verdict.reason == "every check passed (3)"
    assert verdict.confident


def test_the_first_failure_is_the_reason():
    checks = (PASSED[0], Checked("shape", False, "returns [1]"))
    verdict = judge(checks, EXPECTED, None, "network namespace")
    assert (verdict.passed, verdict.reason) == (False, "shape: returns [1]")
    assert verdict.tags == ()


def test_without_isolation_nothing_is_promoted():
    verdict = judge(PASSED, EXPECTED, PLAIN, "")
    assert not verdict.passed
    assert verdict.reason.startswith("isolation: none was in force")


@pytest.mark.parametrize(
    ("checks", "measured"),
    [
        (PASSED[:2], PLAIN),
        ((), PLAIN),
        (PASSED[::-1], PLAIN),
        ((*PASSED, PASSED[0]), PLAIN),
        (PASSED, None),
        ((PASSED[0], PASSED[0], PASSED[2]), PLAIN),
    ],
)
def test_fewer_other_or_unmeasured_checks_are_not_enough(checks, measured):
    verdict = judge(checks, EXPECTED, measured, "network namespace")
    assert not verdict.passed
    assert "was not reached" in verdict.reason


@pytest.mark.parametrize(
    ("word", "at", "over"),
    [
        ("high_speed", {"forward_ratio": 0.9}, {"forward_ratio": 0.901}),
        ("low_memory", {"peak_bytes": 900}, {"peak_bytes": 901}),
        ("numerically_stable", {"gradient_reading": 0.1}, {"gradient_reading": 0.101}),
        ("small", {"parameter_count": 4096}, {"parameter_count": 4097}),
    ],
)
def test_a_word_is_given_up_to_its_limit(word, at, over):
    assert tags(PLAIN) == ()
    assert tags(replace(PLAIN, **at)) == (word,)
    assert tags(replace(PLAIN, **over)) == ()


def test_speed_is_not_claimed_from_times_that_disagree():
    assert tags(replace(PLAIN, forward_ratio=0.1, spread=0.51)) == ()


def test_words_are_in_order():
    best = replace(PLAIN, forward_ratio=0.5, peak_bytes=1, gradient_reading=0.0, parameter_count=1)
    assert tags(best) == ("high_speed", "low_memory", "numerically_stable", "small")


@pytest.mark.parametrize(("runs", "spread", "confident"), [(30, 0.5, True), (29, 0.5, False), (30, 0.51, False)])
def test_confidence_needs_enough_runs_that_agree(runs, spread, confident):
    assert judge(PASSED, EXPECTED, replace(PLAIN, runs=runs, spread=spread), "x").confident is confident
