"""Make and open envelopes: what every bus message is wrapped in."""

import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from esper import errors
from esper.api.oona.v1 import bus_pb2
from esper.oona import subjects

M = TypeVar("M", bound=Message)

Envelope = bus_pb2.Envelope

_ID = re.compile(r"[!-~]+")
_LIMITS = {"id": 256, "sender": 128, "payload_type": 256}


def utc_now() -> datetime:
    """The time, for those who are handed no clock."""
    return datetime.now(UTC)


class Sender:
    """Makes the envelopes of one sender.

    `name`: component and instance, e.g. "tamiyo/0". `clock`: the time. `nonce`: told
    apart from the sender's earlier lives, whose counters began at 1 as well; an id of
    theirs would make the broker take a new event for a repeated one.
    """

    def __init__(self, name: str, clock: Callable[[], datetime] = utc_now, nonce: str | None = None) -> None:
        if not name or len(name) > _LIMITS["sender"]:
            raise errors.InvalidRequest(f"sender {name!r} must have 1 to {_LIMITS['sender']} characters")
        self.name = name
        self._clock = clock
        self._nonce = secrets.token_hex(4) if nonce is None else nonce
        self._counter = 0

    def seal(
        self,
        message: Message,
        *,
        run_id: str = "",
        key: str | None = None,
        cause: Envelope | None = None,
        trace_parent: str = "",
    ) -> Envelope:
        """An envelope around `message`.

        `key`: what makes the event one, e.g. a command id or a digest: the same key again
        is the same event. Without it the envelope is unique. `cause`: the envelope that
        caused this one; its trace goes on unless `trace_parent` is given.
        """
        if key is None:
            self._counter += 1
            key = f"{self._nonce}-{self._counter}"
        envelope = Envelope(
            id=f"{subjects.check_run_id(run_id) if run_id else subjects.NO_RUN}/{self.name}/{key}",
            sender=self.name,
            trace_parent=trace_parent or (cause.trace_parent if cause is not None else ""),
            causation_id=cause.id if cause is not None else "",
            payload_type=message.DESCRIPTOR.full_name,
            payload=message.SerializeToString(deterministic=True),
            run_id=run_id,
        )
        envelope.send_time.FromDatetime(self._clock())
        return envelope


def check(name: str, envelope: Envelope) -> None:
    """Raise InvalidRequest unless `envelope` is complete and may travel on `name`."""
    for field, limit in _LIMITS.items():
        length = len(getattr(envelope, field))
        if not 1 <= length <= limit:
            raise _refuse(name, envelope, field, f"has {length} characters, 1 to {limit} are allowed")
    if not envelope.HasField("send_time"):
        raise _refuse(name, envelope, "send_time", "is unset")
    if envelope.run_id:
        subjects.check_run_id(envelope.run_id)
    head = f"{envelope.run_id or subjects.NO_RUN}/"
    if not envelope.id.startswith(head):
        raise _refuse(name, envelope, "id", f"must begin with its run, {head!r}")
    if not _ID.fullmatch(envelope.id):  # it travels in a header, which would change anything else
        raise _refuse(name, envelope, "id", "must be printable ASCII without spaces")
    subjects.payload_class(name, envelope.payload_type)


def _refuse(name: str, envelope: Envelope, field: str, words: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"envelope {envelope.id[:64]!r} on {name}: {field} {words}", {f"envelope.{field}": words}
    )


def unpack(name: str, envelope: Envelope) -> Message:
    """The payload, as the message its type says, if `name` carries that type."""
    return _decode(envelope, subjects.payload_class(name, envelope.payload_type))


def open_as(envelope: Envelope, expected: type[M]) -> M:
    """The payload as `expected`. Raises InvalidRequest naming both types when it is another message."""
    wanted = expected.DESCRIPTOR.full_name
    if envelope.payload_type != wanted:
        raise errors.InvalidRequest(
            f"envelope {envelope.id!r} carries {envelope.payload_type!r}, {wanted!r} is wanted",
            {"envelope.payload_type": f"{wanted} is wanted"},
        )
    return _decode(envelope, expected)


def _decode(envelope: Envelope, cls: type[M]) -> M:
    try:
        return cls.FromString(envelope.payload)
    except DecodeError as error:
        raise errors.InvalidRequest(
            f"envelope {envelope.id!r}: {len(envelope.payload)} bytes are no {envelope.payload_type}",
            {"envelope.payload": "does not parse"},
        ) from error
