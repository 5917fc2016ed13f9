"""events.jsonl's fields: fixed for transitions, strict JSON for everything."""

import json
import math

from hypothesis import HealthCheck, given, settings

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.nissa.fields import fields_of
from esper.nissa.jsonl import line_of
from esper.nissa.translate import event_of_decision, event_of_report

from .feed import recorded
from .scenario import at, germinate, judged, moved, progress, report, summary
from .strategies import KINDS, events


def test_a_transition_has_exactly_its_seven_fields_in_order():
    event = pb.RunEvent(run_id="run-1", time=at(0.25), transition=moved("TRAINING", "GRAFTING", 230, reason="inserted"))
    assert line_of(event) == (
        '{"kind": "transition", "seed": "fc1/0", "from": "TRAINING", "to": "GRAFTING", "step": 230, '
        '"reason": "inserted", "time": "2027-01-15T08:00:00.250000Z"}\n'
    )


def test_a_decision_has_its_candidates_and_plan():
    fields = fields_of(event_of_decision(germinate(200), at(0)))
    assert (fields["decision_id"], fields["decision"], fields["confidence"]) == ("run-1/200/0", "ADD_SEED", 0.8)
    assert fields["commands"] == ["run-1/200/0/0"]
    assert fields["plan"]["undo"] == "cull"
    tried, untried = fields["candidates"]
    assert (tried["seed"], tried["chosen"], tried["isolated_gain"]) == ("fc1/0", True, 0.04)
    assert "isolated_gain" not in untried and "expected_reward" not in untried
    assert "verdict" not in fields


def test_a_verdict_has_what_it_rests_on():
    verdict = fields_of(event_of_decision(judged(400, True), at(0)))["verdict"]
    assert verdict == {
        "seed": "fc1/0",
        "keep": True,
        "gain": 0.031,
        "standard_error": 0.006,
        "control": "twin",
        "pairs": 512,
        "mean": 0.5,
        "control_mean": 0.516,
        "false_keep_rate": 0.03,
        "confounded": False,
        "round": 1,
        "reason": "gain above 1 %",
    }


def test_progress_has_short_numbers_and_null_for_what_is_no_number():
    said = progress(100, 0.5, {"fc1/0": 0.1})
    said.losses.append(math.nan)
    fields = fields_of(pb.RunEvent(progress=said))
    assert fields["losses"] == [0.6, 0.5, None]
    assert fields["alphas"] == {"fc1/0": 0.1}


def test_a_seed_that_was_never_judged_has_no_gain():
    assert "gain" not in fields_of(event_of_report(report(700, "CANCELLED"), at(0)))
    assert fields_of(event_of_report(report(700, "CULLED", gain=-0.1), at(0)))["gain"] == -0.1


def test_a_score_the_task_has_not_is_absent():
    arms = fields_of(pb.RunEvent(summary=summary()))["arms"]
    assert [arm.get("test_score") for arm in arms] == [0.91, 0.89, None]
    assert "test_score" not in arms[2]


def test_the_scenario_has_every_kind():
    assert {fields_of(event)["kind"] for event in recorded()} == set(KINDS)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None, max_examples=150)
@given(events())
def test_every_event_is_one_line_of_strict_json(event):
    line = line_of(event)
    assert len(line.splitlines()) == 1
    fields = json.loads(line, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))
    assert fields["kind"] == event.WhichOneof("event")
    assert {"step", "time"} <= set(fields)
