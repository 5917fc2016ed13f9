"""What trainers and the controller say, as events of a run. Pure.

One function per speaker. What is no event (readings, jobs, checkpoints) gives none.
"""

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2

# What of an AttachRequest is an event, under the same name.
_EVENTS = ("hello", "transition", "outcome", "rollback", "progress", "goodbye", "note")


def event_of_request(run_id: str, request: trainer_pb2.AttachRequest, time: Timestamp) -> pb.RunEvent | None:
    """The event a trainer's message is; None where it is none.

    A decision point is an event where it brings a validation that was measured.
    """
    kind = request.WhichOneof("message")
    if kind == "state":
        return event_of_packet(request.state, time)
    if kind not in _EVENTS:
        return None
    return _event(run_id, kind, getattr(request, kind), time)


def event_of_packet(packet: state_pb2.SystemStatePacket, time: Timestamp) -> pb.RunEvent | None:
    """The run's latest validation. It comes with every packet until there is a newer one."""
    if not packet.HasField("validation_loss"):
        return None
    measured = pb.Validation(step=packet.validation_step, loss=packet.validation_loss, arm="run")
    return _event(packet.run_id, "validation", measured, time)


def events_of_answer(answer: controller_pb2.DecideResponse, time: Timestamp) -> Iterable[pb.RunEvent]:
    """The controller's decisions, then its reports on seeds that ended."""
    for decision in answer.decisions:
        yield event_of_decision(decision, time)
    for report in answer.field_reports:
        yield event_of_report(report, time)


def event_of_decision(decision: controller_pb2.Decision, time: Timestamp) -> pb.RunEvent:
    """`time` is for a decision that does not know its own."""
    return _event(decision.run_id, "decision", decision, decision.time if decision.HasField("time") else time)


def event_of_report(report: controller_pb2.FieldReport, time: Timestamp) -> pb.RunEvent:
    """`time` is for a report that does not know its own."""
    event = _event(report.seed.run_id, "field_report", report, report.time if report.HasField("time") else time)
    event.step = report.end_step
    return event


def _event(run_id: str, kind: str, said: object, time: Timestamp) -> pb.RunEvent:
    event = pb.RunEvent(run_id=run_id, time=time, step=int(getattr(said, "step", 0)))
    getattr(event, kind).CopyFrom(said)
    # A message without any field set must still say which one it is.
    getattr(event, kind).SetInParent()
    return event
