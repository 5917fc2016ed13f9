"""Envelopes: complete, unique, and opened as what they are."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper import errors
from esper.api.kasmina.v1 import control_pb2, telemetry_pb2
from esper.api.tezzeret.v1 import forge_pb2
from esper.oona.envelope import Envelope, Sender, check, open_as, unpack
from esper.oona.subjects import Name

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
COMMAND = control_pb2.ControlCommand(command_id="c1", run_id="run-1")


def make(name="tamiyo/0", nonce="n"):
    return Sender(name, clock=lambda: NOW, nonce=nonce)


def test_an_envelope_says_who_when_and_what():
    envelope = make().seal(COMMAND, run_id="run-1", trace_parent="00-a-b-01")
    assert (envelope.id, envelope.sender, envelope.run_id) == ("run-1/tamiyo/0/n-1", "tamiyo/0", "run-1")
    assert envelope.send_time.ToDatetime(UTC) == NOW
    assert envelope.trace_parent == "00-a-b-01"
    assert open_as(envelope, control_pb2.ControlCommand) == COMMAND
    assert unpack(Name.COMMANDS, envelope) == COMMAND
    check(Name.COMMANDS, envelope)


def test_an_effect_names_its_cause_and_keeps_its_trace():
    cause = make().seal(COMMAND, run_id="run-1", trace_parent="00-a-b-01")
    effect = make("kasmina/0").seal(COMMAND, run_id="run-1", cause=cause)
    assert (effect.causation_id, effect.trace_parent) == (cause.id, cause.trace_parent)


def test_ids_are_unique_over_the_lives_of_a_sender_and_the_same_for_one_key():
    first, second = Sender("a", clock=lambda: NOW), Sender("a", clock=lambda: NOW)
    made = {sender.seal(COMMAND).id for sender in (first, second) for _ in range(100)}
    assert len(made) == 200
    assert first.seal(COMMAND, key="c1").id == second.seal(COMMAND, key="c1").id == "_/a/c1"


@given(payload=st.binary(max_size=200))
def test_bytes_that_are_not_the_payload_are_refused_or_parsed_and_never_raise_otherwise(payload):
    envelope = make().seal(COMMAND, run_id="run-1")
    envelope.payload = payload
    try:
        unpack(Name.COMMANDS, envelope)
    except errors.InvalidRequest as error:
        assert "no esper.api.kasmina.v1.ControlCommand" in str(error)


def test_another_message_is_refused_naming_both():
    envelope = make().seal(COMMAND)
    with pytest.raises(errors.InvalidRequest, match=r"'esper\.api\.kasmina\.v1\.ControlCommand'.*HealthBatch"):
        open_as(envelope, telemetry_pb2.HealthBatch)
    with pytest.raises(errors.InvalidRequest, match=r"ControlCommand.*another subject.*KernelReady"):
        unpack(Name.KERNEL_READY, envelope)
    envelope.payload_type = "evil.Message"
    with pytest.raises(errors.InvalidRequest, match=r"evil\.Message.*no subject.*KernelReady"):
        unpack(Name.KERNEL_READY, envelope)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("id", "", "0 characters"),
        ("id", "run-1/" + "x" * 251, "257 characters"),
        ("id", "run-2/tamiyo/0/1", "must begin with its run"),
        ("id", "run-1/a b", "printable ASCII"),
        ("id", "run-1/a\nb", "printable ASCII"),
        ("id", "run-1/é", "printable ASCII"),
        ("sender", "", "0 characters"),
        ("payload_type", "", "0 characters"),
        ("run_id", "Run 1", "run id"),
        ("run_id", "", "must begin with its run"),
    ],
)
def test_an_incomplete_envelope_is_refused_by_field(field, value, words):
    envelope = make().seal(COMMAND, run_id="run-1")
    setattr(envelope, field, value)
    with pytest.raises(errors.InvalidRequest, match=words):
        check(Name.COMMANDS, envelope)


def test_an_envelope_without_a_time_is_refused():
    envelope = make().seal(COMMAND, run_id="run-1")
    envelope.ClearField("send_time")
    with pytest.raises(errors.InvalidRequest) as caught:
        check(Name.COMMANDS, envelope)
    assert list(caught.value.fields) == ["envelope.send_time"]


def test_a_sender_needs_a_name_and_a_run_must_be_one():
    with pytest.raises(errors.InvalidRequest):
        Sender("")
    with pytest.raises(errors.InvalidRequest, match="run id"):
        make().seal(forge_pb2.KernelReady(), run_id="Not A Run")


def test_equal_messages_have_equal_bytes():
    one = telemetry_pb2.LayerPerformance(recoveries={"a": 1, "b": 2})
    two = telemetry_pb2.LayerPerformance(recoveries={"b": 2, "a": 1})
    assert make().seal(one).payload == make().seal(two).payload
    assert isinstance(make().seal(one), Envelope)
