"""What the report says, and what it says is missing."""

import math

import pytest

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.nissa.page import NONE, number, page_of, percent, scaled
from esper.nissa.summary import record_of

from .feed import recorded
from .scenario import GOOD, RUN, hello, moved, progress, status, summary


def page(events=None, kernels=None):
    return page_of(record_of(RUN, recorded() if events is None else events), kernels or {})


def test_the_result_has_a_row_per_arm():
    assert page().arms == [
        ("grown", "0.41", "0.9100", "1,064", "3 TFLOP", "900"),
        ("never-grown", "0.45", "0.8900", "1,000", "1 TFLOP", "0"),
        ("static-final", "0.42", "the task has none", "1,064", "1.1 TFLOP", "800"),
    ]
    assert ("stalled_steps", "0") in page().totals
    assert set(page().missing) == {"genealogy"}  # nobody was asked


def test_an_arm_that_was_not_trained_is_said_to_be_missing():
    made = summary()
    del made.arms[1:]
    made.arms.add(arm="seed-7", test_loss=1)
    found = page([pb.RunEvent(summary=made)])
    assert [row[:2] for row in found.arms] == [
        ("grown", "0.41"),
        ("never-grown", "not measured"),
        ("static-final", "not measured"),
        ("seed-7", "1"),
    ]
    assert "not every control was trained" in found.missing["controls"]


def test_of_an_empty_run_everything_is_missing_and_nothing_made_up():
    found = page([])
    assert set(found.missing) == {
        "facts",
        "results",
        "losses",
        "twin",
        "parameters",
        "costs",
        "lanes",
        "decisions",
        "fossils",
    }
    assert (found.arms, found.totals, found.culls) == ([], [], [])
    assert "no goodbye" in found.status


def test_stalled_steps_of_a_run_without_summary_are_those_last_heard():
    assert page([pb.RunEvent(progress=progress(100, stalled_steps=3))]).totals == [("stalled_steps", "3")]


def test_an_error_that_ended_the_run_is_said():
    assert page([pb.RunEvent(goodbye={"error": "ValueError: no"})]).status == "ended by an error: ValueError: no"


def test_a_run_that_was_stopped_has_not_completed():
    begun, stopped = pb.RunEvent(hello={"total_steps": 400}), pb.RunEvent(goodbye={"step": 120, "stopped": True})
    assert page([begun, stopped]).status == "stopped at step 120 of 400; it can be resumed"
    assert page([stopped]).status == "stopped at step 120; it can be resumed"
    assert page([begun, stopped, begun]).status == "not over: no goodbye was heard"


def test_a_verdict_reads_with_gain_error_control_and_false_keep_rate():
    (verdict,) = [row.verdict for row in page().decisions if row.step == 400]
    assert verdict.startswith(
        "keep fc1/0: gain +3.10 % ± 0.60 % against its twin on 512 examples, false-keep rate 3.00 %, round 1"
    )


def test_candidates_show_only_estimates_there_are():
    tried, untried = page().decisions[0].candidates
    assert tried == ("chosen", "fc1/0", "bottleneck 4", NONE, NONE, "+4.00 %", "best")
    assert untried == ("", "conv/0", "gate", NONE, NONE, NONE, "no experience")


def test_a_cull_has_its_measured_reason():
    ((seed, _, step, gain, reason),) = page().culls
    assert (seed, step) == ("fc1/1", "710")
    assert gain == "+0.10 % ± 0.60 % against its twin"
    assert reason == "gain 0.10 % is below 1 %"
    ((*_, gain, _),) = page([pb.RunEvent(transition=moved("GRAFTING", "CULLED", 5))]).culls
    assert gain == "not judged"


def test_titles_come_from_known_kernels_first():
    events = [pb.RunEvent(transition=moved("FINE_TUNING", "FOSSILIZED", 5))]
    assert page(events).fossils[0][1] == NONE
    assert page(events, {GOOD: status(GOOD, "gate 3")}).fossils[0][1:4] == ("gate 3", "5", GOOD)


def test_the_facts_of_a_run():
    facts = dict(page([pb.RunEvent(hello=hello(versions={}))]).facts)
    assert (facts["task"], facts["policy"], facts["random seed"]) == ("digits", "heuristic", "7")
    assert (facts["steps"], facts["versions"], facts["ended"]) == ("0 of 1,000", NONE, NONE)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 FLOP"), (999, "999 FLOP"), (1234, "1.23 kFLOP"), (5.6e13, "56 TFLOP"), (2e18, "2e+03 PFLOP")],
)
def test_operations_have_a_prefix(value, text):
    assert scaled(value) == text


def test_numbers_that_are_not_finite_are_named():
    assert (number(math.inf), percent(math.nan), percent(0.5, sign="")) == ("inf", "nan", "50.00 %")
