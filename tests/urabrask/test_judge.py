"""The rule of promotion, and the words a kernel gets."""

from dataclasses import replace

import pytest

from esper.urabrask.judge import Checked, Measured, confident, interest, judge, tags
from esper.urabrask.population import ALONE, Standing

EXPECTED = ("form", "shape", "latency")
PASSED = tuple(Checked(name, True, "fine") for name in EXPECTED)
PLAIN = Measured(
    forward_ratio=1.0,
    measurable=True,
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


def test_the_first_failure_is_the_reason():
    checks = (PASSED[0], Checked("shape", False, "returns [1]"))
    verdict = judge(checks, EXPECTED, None, "network namespace")
    assert (verdict.passed, verdict.reason) == (False, "shape: returns [1]")


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
    assert tags(PLAIN, ALONE) == ("speculative",)
    assert tags(replace(PLAIN, **at), ALONE) == tuple(sorted((word, "speculative")))
    assert tags(replace(PLAIN, **over), ALONE) == ("speculative",)


def test_with_peers_the_best_fifth_gets_the_word_whatever_the_ratio():
    slow = replace(PLAIN, forward_ratio=3.0, peak_bytes=10_000)
    assert tags(slow, Standing(8, 0.2, 0.2)) == ("high_speed", "low_memory", "moderate")
    quick = replace(PLAIN, forward_ratio=0.1, peak_bytes=1)
    assert tags(quick, Standing(8, 0.21, 0.21)) == ("moderate",)
    assert tags(quick, Standing(7, 0.21, 0.21)) == ("high_speed", "low_memory", "speculative")


def test_speed_is_not_claimed_from_times_that_disagree():
    shaky = replace(PLAIN, forward_ratio=0.1, measurable=False)
    assert tags(shaky, ALONE) == tags(shaky, Standing(20, 0.0, 0.5)) == ("speculative",)


@pytest.mark.parametrize(
    ("runs", "measurable", "members", "sure"),
    [(30, True, 8, True), (29, True, 8, False), (30, False, 8, False), (30, True, 7, False)],
)
def test_confidence_needs_enough_runs_that_agree_and_enough_peers(runs, measurable, members, sure):
    measured = replace(PLAIN, runs=runs, measurable=measurable)
    assert confident(measured, Standing(members, 0.5, 0.5)) is sure


def test_an_evaluator_without_isolation_gives_no_verdict_that_counts():
    for checks in (PASSED, (Checked("form", False, "junk"),)):
        verdict = judge(checks, EXPECTED, PLAIN, "network namespace", "--unsafe-no-jail: no isolation")
        assert (verdict.passed, verdict.unpromotable) == (False, "--unsafe-no-jail: no isolation")
        assert verdict.reason == "unpromotable: --unsafe-no-jail: no isolation"


@pytest.mark.parametrize(
    ("standing", "sure", "gain", "score"),
    [
        (ALONE, False, None, 0.75),
        (ALONE, True, -3.0, 0.25),
        (Standing(8, 0.5, 0.5), True, 2.0, 0.25),
        (Standing(8, 0.0, 1.0), False, 9.0, 1.0),
        (Standing(8, 0.5, 0.5), True, 0.0, 0.0),
    ],
)
def test_interest_is_what_there_is_to_win_or_learn(standing, sure, gain, score):
    assert interest(standing, sure, gain) == pytest.approx(score)
