"""What trainers and the controller say, as events."""

import pytest

from esper.api.nissa.v1.observability_pb2 import RunEvent
from esper.nissa.translate import event_of_packet, event_of_request, events_of_answer

from .feed import recorded
from .scenario import RUN, answer, ask, at, hello, judged, nothing, packet, report


def test_what_is_an_event_keeps_its_name():
    kinds = [event.WhichOneof("event") for event in recorded()]
    assert kinds[0] == "hello"
    assert {"transition", "outcome", "rollback", "progress", "goodbye", "note"} <= set(kinds)


@pytest.mark.parametrize("kind", ["health", "performance", "job", "checkpoint"])
def test_what_is_no_event_gives_none(kind):
    request = ask()
    getattr(request, kind).SetInParent()
    assert event_of_request(RUN, request, at(0)) is None


def test_an_empty_message_still_says_what_it_is():
    request = ask()
    request.goodbye.SetInParent()
    assert event_of_request(RUN, request, at(0)).HasField("goodbye")


def test_a_packet_is_the_validation_it_brings():
    event = event_of_packet(packet(400, 0.8), at(5))
    assert (event.run_id, event.step, event.time) == (RUN, 400, at(5))
    assert (event.validation.step, event.validation.loss, event.validation.arm) == (400, 0.8, "run")
    assert event_of_packet(packet(400), at(5)) is None


def test_an_answer_is_its_decisions_then_its_reports_at_their_own_times():
    made = answer(nothing(5), judged(400, True), reports=[report(450, "FOSSILIZED")])
    made.decisions[0].ClearField("time")
    events = list(events_of_answer(made, at(9999)))
    assert [event.WhichOneof("event") for event in events] == ["decision", "decision", "field_report"]
    assert [event.time.seconds - at(0).seconds for event in events] == [9999, 400, 450]
    assert [event.step for event in events] == [5, 400, 450]


def test_every_step_and_run_is_filled_in():
    event = event_of_request(RUN, ask(hello=hello()), at(3))
    assert event == RunEvent(run_id=RUN, time=at(3), hello=hello())
