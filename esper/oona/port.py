"""What a message bus does, whoever does it.

Order and delivery: what one publisher publishes one after the other is delivered in
that order, at least once. A subscriber keeps its own cursor (`esper.oona.cursor`).
Two runs never hear each other: a subscription names its run, or is for all.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from esper.api.oona.v1 import bus_pb2

Envelope = bus_pb2.Envelope

MAX_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Published:
    """Where an envelope was stored. `duplicate`: its id was stored before, nothing was added."""

    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """One envelope to apply. `index` of `count` envelopes in the bus message `sequence`, from 0."""

    sequence: int
    envelope: Envelope
    index: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Work that failed too often. `reason`: of its last failure."""

    sequence: int
    envelope: Envelope
    deliveries: int
    reason: str


@dataclass(frozen=True, slots=True)
class StreamState:
    """One stream. Sequences are 0 while it is empty and never was filled.

    `sync_always`: each write is synced to disk before it is acknowledged, so far as the bus knows.
    """

    name: str
    messages: int
    size_bytes: int
    first_sequence: int
    last_sequence: int
    sync_always: bool


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """How a group works. All members of a group use the same.

    `redeliver_after_s`: an item that is not settled or extended for so long is given to
    another member. `max_deliveries`: after so many an item becomes a dead letter.
    """

    redeliver_after_s: float = 60.0
    max_deliveries: int = 5


class WorkItem(Protocol):
    """One piece of work, held until it is settled, once, by `ack`, `nack` or `reject`; late `ack` counts."""

    @property
    def sequence(self) -> int:
        """Stream sequence."""

    @property
    def envelope(self) -> Envelope:
        """What to do."""

    @property
    def deliveries(self) -> int:
        """How often it was delivered, this time included. A broker that was killed may have forgotten some."""

    async def ack(self) -> None:
        """It is done. Raises Unavailable when the broker cannot be told; it will then come again."""

    async def nack(self, reason: str, delay_s: float = 0.0) -> None:
        """It failed: deliver it again after `delay_s`, or make it a dead letter if that was the last time."""

    async def reject(self, reason: str) -> None:
        """No retry will help: make it a dead letter now."""

    async def extend(self) -> None:
        """It takes longer: start `redeliver_after_s` anew."""


Handler = Callable[[Envelope], Awaitable[Envelope]]


class Bus(Protocol):
    """The message bus.

    Every method raises InvalidRequest for an unknown name or an incomplete envelope,
    Exhausted for one that is too large, Unavailable while the broker is away.
    """

    @property
    def max_envelope_bytes(self) -> int:
        """Largest serialised envelope, or batch of envelopes, that can be published."""

    async def publish(
        self, name: str, envelope: Envelope, *, rank: int | None = None, timeout_s: float | None = None
    ) -> Published:
        """Store one envelope and return when it is stored.

        While the broker is away it waits and tries again, with the same id, until
        `timeout_s`. Exhausted when too many publishes wait, or the stream is full.
        """

    async def publish_batch(
        self, name: str, envelopes: Sequence[Envelope], *, rank: int | None = None, timeout_s: float | None = None
    ) -> list[Published]:
        """Store envelopes of one run, in order. On batched names they are one bus message with one sequence.

        `duplicate` is known per bus message: of a batch only when the same batch was stored before.
        """

    def subscribe(
        self,
        name: str,
        *,
        run_id: str | None = None,
        after_sequence: int = 0,
        from_time: datetime | None = None,
    ) -> AsyncIterator[Delivery]:
        """Stored envelopes from a position, then live ones, until the bus is closed.

        `run_id`: one run, "" for events of none; None is all. `after_sequence` 0 is the
        oldest kept; `from_time` instead of it: stored at that time or later. Raises
        OutOfRange when envelopes after `after_sequence` may be gone.
        """

    def work(self, name: str, group: str, options: WorkOptions = ...) -> AsyncIterator[WorkItem]:
        """Items for one member of `group`, one at a time; every item goes to one member. Not on batched names."""

    async def dead_letters(self, name: str, group: str) -> list[DeadLetter]:
        """The items `group` gave up, oldest first."""

    async def request(self, name: str, envelope: Envelope, *, timeout_s: float) -> Envelope:
        """Ask whoever responds on `name` for the envelope's run, and return the answer. Not stored.

        Raises what the responder raised, Unavailable when nobody responds, DeadlineExceeded.
        """

    def respond(self, name: str, handler: Handler, *, run_id: str = "") -> AbstractAsyncContextManager[None]:
        """Answer requests with `handler` while the context is open. Several responders share the requests."""

    async def streams(self) -> list[StreamState]:
        """All streams, by name."""

    async def close(self) -> None:
        """End subscriptions and work, and let go of the broker."""
