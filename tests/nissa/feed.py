"""Ways to tell the scenario: to a sink by calls, to a bus as the gateway and Tamiyo publish it."""

from collections.abc import Iterable, Iterator

from google.protobuf.message import Message

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.nissa.sink import RunSink
from esper.nissa.translate import event_of_request, events_of_answer
from esper.oona import subjects
from esper.oona.envelope import Sender
from esper.oona.port import Bus, Envelope

from .scenario import RUN, Said, messages


def tell(sink: RunSink, said: Iterable[Said]) -> None:
    for one in said:
        if isinstance(one.message, trainer_pb2.AttachRequest):
            sink.request(one.message)
        elif isinstance(one.message, controller_pb2.DecideResponse):
            sink.response(one.message)
        else:
            sink.event(one.message)


def recorded(directory: str = "") -> list[pb.RunEvent]:
    """The scenario's events with their positions, as the log has them."""
    found: list[pb.RunEvent] = []
    for one in messages(directory):
        if isinstance(one.message, trainer_pb2.AttachRequest):
            event = event_of_request(RUN, one.message, one.time)
            found += [event] if event is not None else []
        elif isinstance(one.message, controller_pb2.DecideResponse):
            found += events_of_answer(one.message, one.time)
        else:
            event = pb.RunEvent()
            event.CopyFrom(one.message)
            event.time.CopyFrom(one.time)
            found.append(event)
    for position, event in enumerate(found, 1):
        event.position = position
    return found


def published(said: Iterable[Said], run_id: str = RUN) -> Iterator[tuple[str, Envelope]]:
    """What the gateway, Tamiyo and the others put on the bus: subject and envelope, ids the same every time."""
    gateway, tamiyo = Sender("gateway/0", nonce="g"), Sender("tamiyo/0", nonce="t")
    for one in said:
        for message, sender in _published(one, run_id, gateway, tamiyo):
            envelope = sender.seal(message, run_id=run_id)
            envelope.send_time.CopyFrom(one.time)
            yield subjects.name_for(message.DESCRIPTOR.full_name), envelope


def _published(one: Said, run_id: str, gateway: Sender, tamiyo: Sender) -> Iterator[tuple[Message, Sender]]:
    message = one.message
    if isinstance(message, controller_pb2.DecideResponse):
        for decision in message.decisions:
            yield controller_pb2.AdaptationProposal(decision=decision), tamiyo
        for report in message.field_reports:
            yield report, tamiyo
    elif isinstance(message, trainer_pb2.AttachRequest):
        kind = message.WhichOneof("message")
        if kind in ("state", "health", "performance"):
            yield getattr(message, kind), gateway
        elif (event := event_of_request(run_id, message, one.time)) is not None:
            yield event, gateway
    else:
        yield message, gateway


async def publish(bus: Bus, envelopes: Iterable[tuple[str, Envelope]]) -> None:
    for name, envelope in envelopes:
        await bus.publish(name, envelope)
