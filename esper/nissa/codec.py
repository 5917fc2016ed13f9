"""How Nissa names what is in a RunEvent: seeds, states, kinds, steps, times, and what makes an event one."""

import hashlib
import math

from google.protobuf.message import Message

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import InvalidRequest

# Events that say the same when they say the same thing, whoever sent them and how often.
_BY_CONTENT = ("decision", "field_report", "validation")


def kind_of(event: pb.RunEvent) -> str:
    """Name of the field that is set, e.g. "transition". Raises InvalidRequest for an event that says nothing."""
    kind = event.WhichOneof("event")
    if kind is None:
        raise InvalidRequest(f"an event of run {event.run_id!r} says nothing", {"event": "must be set"})
    return kind


def key_of(event: pb.RunEvent, envelope_id: str) -> str:
    """What makes an event one: its envelope, or what it says where several may report the same thing."""
    kind = kind_of(event)
    if kind not in _BY_CONTENT:
        return envelope_id
    said = getattr(event, kind)
    same = type(said)()
    same.CopyFrom(said)
    # When it was said differs between reports of one thing, and not everybody knows the score.
    same.ClearField("score" if kind == "validation" else "time")
    return f"{kind}/{hashlib.sha256(same.SerializeToString(deterministic=True)).hexdigest()}"


def step_of(event: pb.RunEvent) -> int:
    """Training step: that of what the event carries, or its own."""
    said = getattr(event, kind_of(event))
    if isinstance(said, controller_pb2.FieldReport):
        return said.end_step
    return int(getattr(said, "step", 0)) or event.step


def check_time(event: pb.RunEvent) -> None:
    """Raise InvalidRequest for a time that no calendar has."""
    try:
        event.time.ToDatetime()
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"an event of run {event.run_id!r} has no time: {error}", {"time": str(error)}) from error


def seed_name(seed: seed_pb2.SeedRef) -> str:
    """ "<site>/<slot>"."""
    return f"{seed.site}/{seed.slot}"


def state_name(state: int) -> str:
    """E.g. "GRAFTING". A number that this release does not know stands for itself."""
    return _name(seed_pb2.SeedState, "SEED_STATE_", state)


def decision_name(kind: int) -> str:
    """E.g. "ADD_SEED"."""
    return _name(controller_pb2.DecisionKind, "DECISION_KIND_", kind)


def control_name(control: int) -> str:
    """ "twin" or "ablation"; "unspecified" where it was not said."""
    return _name(training_pb2.Control, "CONTROL_", control).lower()


def ending(goodbye: trainer_pb2.Goodbye, total_steps: int) -> str:
    """How a run ended, in words. `total_steps`: that it meant to do, 0 where that is not known."""
    if goodbye.stopped:
        return stopped_at(goodbye.step, total_steps) + "; it can be resumed"
    return "completed" if goodbye.completed else f"ended by an error: {goodbye.error}"


def stopped_at(step: int, total_steps: int) -> str:
    """Where a run was stopped, in words."""
    return f"stopped at step {step}" + (f" of {total_steps}" if total_steps else "")


def source_of(transition: seed_pb2.SeedTransition) -> int:
    """The state before; the field is called `from`, a keyword in Python."""
    return int(getattr(transition, "from"))


def time_text(event: pb.RunEvent) -> str:
    """ISO 8601, UTC, to the microsecond."""
    return event.time.ToDatetime().isoformat(timespec="microseconds") + "Z"


def finite(value: float) -> float | None:
    """JSON knows no infinity and no NaN: they are null."""
    return value if math.isfinite(value) else None


def single(value: float) -> float | None:
    """A 32-bit value as the shortest number that is still it."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def optional(message: Message, field: str) -> float | None:
    """A field that may be unset, or hold no number."""
    return finite(getattr(message, field)) if message.HasField(field) else None


def _name(enum: object, prefix: str, number: int) -> str:
    try:
        return str(enum.Name(number)).removeprefix(prefix)  # type: ignore[attr-defined]
    except ValueError:
        return str(number)
