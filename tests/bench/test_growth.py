"""What `growth` reads out of a run's events, and its intervals over seeds."""

import pytest

from bench.growth.bench_growth import interval, run_rows, task_rows
from bench.growth.runs import outcome_of

ARMS = [
    {"arm": "grown", "test_loss": 0.6, "parameters": 900, "total_flops": 5e9},
    {"arm": "never-grown", "test_loss": 0.8, "parameters": 660, "total_flops": 1e9},
    {"arm": "static-final", "test_loss": 0.7, "parameters": 900, "total_flops": 2e9},
]


def at(second):
    return f"2027-01-15T08:00:{second:02d}.500000Z"


def events(arms=ARMS):
    return [
        {"kind": "transition", "seed": "a/0", "from": "DORMANT", "to": "GERMINATED", "time": at(1)},
        {"kind": "transition", "seed": "b/0", "from": "DORMANT", "to": "GERMINATED", "time": at(2)},
        {"kind": "decision", "decision": "ADD_SEED", "time": at(5)},
        {"kind": "decision", "decision": "NONE", "verdict": {"seed": "a/0", "keep": True}, "time": at(31)},
        {"kind": "decision", "decision": "NONE", "verdict": {"seed": "a/0", "keep": True}, "time": at(40)},
        {"kind": "summary", "arms": arms, "fossilised": 1, "culled": 2, "stalled_steps": 0, "time": at(59)},
    ]


def test_an_outcome_is_what_the_summary_and_the_transitions_say():
    outcome = outcome_of(events())
    assert outcome.gain == pytest.approx(0.25)
    assert outcome.compute_ratio == 5
    assert outcome.parameters == {"grown": 900, "never-grown": 660, "static-final": 900}
    assert outcome.verdict_s == (30.0,)  # a repeated verdict does not count again
    assert (outcome.fossilised, outcome.culled) == (1, 2)


def test_a_run_without_a_summary_or_without_a_control_is_no_outcome():
    with pytest.raises(ValueError, match="no summary"):
        outcome_of(events()[:-1])
    with pytest.raises(ValueError, match="static-final"):
        outcome_of(events(ARMS[:2]))


def test_the_interval_of_a_mean_is_students():
    low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low, high) == pytest.approx((3 - 1.963, 3 + 1.963), abs=1e-3)


def test_rows_of_runs_and_of_their_task():
    better, worse = outcome_of(events()), outcome_of(events([ARMS[0] | {"test_loss": 0.88}, *ARMS[1:]]))
    assert {row.metric for row in run_rows("digits, seed 0", better)} >= {"grown_loss", "gain", "compute_ratio"}
    rows = {row.metric: row for row in task_rows("digits", [better, worse], services=True)}
    assert rows["gain"].value == pytest.approx((0.25 - 0.1) / 2)
    assert rows["gain_low"].value < rows["gain"].value < rows["gain_high"].value
    assert rows["gain_high"].met is True
    assert rows["compute_ratio"].met is False
    assert rows["decision_to_verdict_s_max"].met is True


def test_growth_that_harms_misses_its_target():
    harmed = [outcome_of(events([ARMS[0] | {"test_loss": loss}, *ARMS[1:]])) for loss in (0.90, 0.91, 0.92)]
    rows = {row.metric: row for row in task_rows("digits", harmed, services=False)}
    assert rows["gain_high"].met is False
    assert rows["decision_to_verdict_s_max"].target is None  # training waited for the answers


def test_one_seed_has_no_interval():
    metrics = {row.metric for row in task_rows("digits", [outcome_of(events())], services=False)}
    assert "gain" in metrics
    assert not [metric for metric in metrics if metric.endswith(("_low", "_high"))]
