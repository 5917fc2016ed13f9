"""What makes an event one, and how things are named."""

import math

import pytest
from hypothesis import given

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.errors import InvalidRequest
from esper.nissa import codec
from esper.nissa.translate import event_of_decision

from .scenario import at, judged, moved, report, validation
from .strategies import events


def test_the_same_decision_from_two_envelopes_is_one_event_and_another_decision_is_not():
    first, again = event_of_decision(judged(400, True), at(1)), event_of_decision(judged(400, True), at(1))
    again.decision.time.CopyFrom(at(99))
    assert codec.key_of(first, "envelope-1") == codec.key_of(again, "envelope-2")
    again.decision.reason = "another"
    assert codec.key_of(first, "envelope-1") != codec.key_of(again, "envelope-1")


def test_a_validation_is_one_event_whether_its_score_is_known_or_not():
    known, unknown = validation(100, 0.5, "run"), validation(100, 0.5, "run")
    known.validation.score = 0.9
    assert codec.key_of(known, "gateway") == codec.key_of(unknown, "packet")
    others = [validation(200, 0.5, "run"), validation(100, 0.6, "run"), validation(100, 0.5, "never-grown")]
    assert len({codec.key_of(event, "x") for event in (known, *others)}) == 4


def test_what_happens_twice_is_told_apart_by_its_envelope():
    event = pb.RunEvent(transition=moved("DORMANT", "GERMINATED", 5))
    assert codec.key_of(event, "envelope-1") == "envelope-1"


def test_an_event_that_says_nothing_is_refused():
    with pytest.raises(InvalidRequest, match="says nothing"):
        codec.key_of(pb.RunEvent(run_id="run-1"), "x")


def test_the_step_is_that_of_what_is_carried():
    assert codec.step_of(pb.RunEvent(step=9, transition=moved("DORMANT", "GERMINATED", 5))) == 5
    assert codec.step_of(pb.RunEvent(step=9, field_report=report(700, "CULLED"))) == 700
    assert codec.step_of(pb.RunEvent(step=9, queues=pb.Queues())) == 9


@pytest.mark.parametrize("seconds", [-(10**12), 10**12])
def test_a_time_no_calendar_has_is_refused(seconds):
    event = pb.RunEvent(run_id="run-1", queues=pb.Queues())
    event.time.seconds = seconds
    with pytest.raises(InvalidRequest, match="has no time"):
        codec.check_time(event)


def test_numbers_this_release_does_not_know_stand_for_themselves():
    assert (codec.state_name(5), codec.state_name(77)) == ("GRAFTING", "77")
    assert (codec.decision_name(2), codec.control_name(2)) == ("ADD_SEED", "ablation")


def test_single_precision_is_written_short_and_exact():
    assert codec.single(0.10000000149011612) == 0.1
    assert codec.single(math.nan) is None


@given(events())
def test_keys_are_stable_and_short(event):
    key = codec.key_of(event, "envelope")
    assert key == codec.key_of(pb.RunEvent.FromString(event.SerializeToString()), "envelope")
    assert len(key) < 100
