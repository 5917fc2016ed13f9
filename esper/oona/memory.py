"""A bus inside one process, for tests and runs without services. The semantics are the port's; nothing is durable."""

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from esper import errors
from esper.oona import wire
from esper.oona.checks import check_position, check_work
from esper.oona.envelope import check, utc_now
from esper.oona.memory_work import Group, HeldItem
from esper.oona.port import (
    DeadLetter,
    Delivery,
    Envelope,
    Handler,
    Published,
    StreamState,
    WorkItem,
    WorkOptions,
)
from esper.oona.subjects import SUBJECTS, Durability, Subject, build, check_run_id, find

DUPLICATE_WINDOW = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Stored:
    """One bus message."""

    sequence: int
    name: str
    run_id: str
    time: datetime
    data: bytes


@dataclass
class _Log:
    """One stream."""

    messages: list[Stored] = field(default_factory=list)
    last_sequence: int = 0
    size_bytes: int = 0
    ids: dict[str, tuple[int, datetime]] = field(default_factory=dict)

    @property
    def first_sequence(self) -> int:
        return self.messages[0].sequence if self.messages else 0

    def after(self, sequence: int) -> Sequence[Stored]:
        """Messages behind `sequence`; they are without gaps, so their place is known."""
        return self.messages[max(0, sequence + 1 - self.first_sequence) :]


class MemoryBus:
    """The port, in memory. `clock`: the time messages are stored at. `max_messages`: kept per stream."""

    def __init__(self, *, clock: Callable[[], datetime] = utc_now, max_messages: int = 100_000) -> None:
        self._clock = clock
        self._max_messages = max_messages
        self._logs: dict[str, _Log] = {subject.stream: _Log() for subject in SUBJECTS.values()}
        self._groups: dict[tuple[str, str], Group] = {}
        self._responders: dict[tuple[str, str], list[Handler]] = defaultdict(list)
        self._turn = itertools.count()
        self._changed = asyncio.Condition()
        self._closed = False

    @property
    def max_envelope_bytes(self) -> int:
        return wire.MAX_BYTES

    async def publish(
        self, name: str, envelope: Envelope, *, rank: int | None = None, timeout_s: float | None = None
    ) -> Published:
        return (await self.publish_batch(name, [envelope], rank=rank, timeout_s=timeout_s))[0]

    async def publish_batch(
        self, name: str, envelopes: Sequence[Envelope], *, rank: int | None = None, timeout_s: float | None = None
    ) -> list[Published]:
        subject = find(name)
        run_id = wire.check_group(name, envelopes)
        build("memory", name, run_id, rank)
        self._check_open()
        groups = [envelopes] if subject.batched else [[envelope] for envelope in envelopes]
        encoded = [(wire.message_id(group), wire.encode(subject, group), len(group)) for group in groups]
        published: list[Published] = []
        for message_id, data, count in encoded:
            published += [self._store(subject, run_id, message_id, data)] * count
        async with self._changed:
            self._changed.notify_all()
        return published

    def _store(self, subject: Subject, run_id: str, message_id: str, data: bytes) -> Published:
        log, now = self._logs[subject.stream], self._clock()
        known = log.ids.get(message_id)
        if known is not None and now - known[1] < DUPLICATE_WINDOW:
            return Published(known[0], True)
        if len(log.messages) >= self._max_messages:
            if subject.durability is Durability.COMMAND:
                raise errors.Exhausted(f"stream {subject.stream}: full with {self._max_messages} messages")
            log.size_bytes -= len(log.messages.pop(0).data)
        log.last_sequence += 1
        log.messages.append(Stored(log.last_sequence, subject.name, run_id, now, data))
        log.size_bytes += len(data)
        log.ids[message_id] = (log.last_sequence, now)
        while len(log.ids) > self._max_messages:
            log.ids.pop(next(iter(log.ids)))
        return Published(log.last_sequence, False)

    def subscribe(
        self,
        name: str,
        *,
        run_id: str | None = None,
        after_sequence: int = 0,
        from_time: datetime | None = None,
    ) -> AsyncIterator[Delivery]:
        log = self._logs[find(name).stream]
        if run_id:
            check_run_id(run_id)
        return self._deliver(log, name, run_id, after_sequence, from_time)

    async def _deliver(
        self, log: _Log, name: str, run_id: str | None, after_sequence: int, from_time: datetime | None
    ) -> AsyncIterator[Delivery]:
        check_position(name, after_sequence, from_time, log.first_sequence, log.last_sequence)
        async for stored in self._follow(log, after_sequence):
            if stored.name != name or run_id not in (None, stored.run_id):
                continue
            if from_time is None or stored.time >= from_time:
                envelopes = wire.decode(name, stored.data)
                for index, envelope in enumerate(envelopes):
                    yield Delivery(stored.sequence, envelope, index, len(envelopes))

    async def _follow(self, log: _Log, after_sequence: int) -> AsyncIterator[Stored]:
        while not self._closed:
            for stored in log.after(after_sequence):
                after_sequence = stored.sequence
                yield stored
                if self._closed:
                    return
            async with self._changed:
                while not self._closed and log.last_sequence <= after_sequence:
                    await self._changed.wait()

    def work(self, name: str, group: str, options: WorkOptions = WorkOptions()) -> AsyncIterator[WorkItem]:  # noqa: B008
        check_work(find(name), group)
        members = self._groups.setdefault((name, group), Group())
        return self._items(self._logs[find(name).stream], name, members, options)

    async def _items(self, log: _Log, name: str, group: Group, options: WorkOptions) -> AsyncIterator[WorkItem]:
        while not self._closed:
            for stored in log.after(group.offered):
                if stored.name == name:
                    group.offer(stored.sequence, wire.decode(name, stored.data)[0])
            group.offered = max(group.offered, log.last_sequence)
            held = group.take(options)
            if held is not None:
                yield HeldItem(group, held, options, self._wake)
                continue
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(group.next_due_s()):
                        await self._changed.wait()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def dead_letters(self, name: str, group: str) -> list[DeadLetter]:
        check_work(find(name), group)
        members = self._groups.get((name, group))
        return list(members.dead) if members is not None else []

    async def request(self, name: str, envelope: Envelope, *, timeout_s: float) -> Envelope:
        check(name, envelope)
        self._check_open()
        handlers = self._responders[name, envelope.run_id]
        if not handlers:
            raise errors.Unavailable(f"nobody responds on {name} for run {envelope.run_id!r}; is its service running?")
        handler = handlers[next(self._turn) % len(handlers)]
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return _copy(await handler(_copy(envelope)))
        except errors.EsperError:
            raise
        except Exception as error:
            if limit.expired():
                words = f"no answer on {name} to {envelope.id!r} within {timeout_s:g} s"
                raise errors.DeadlineExceeded(words) from error
            raise errors.EsperError(f"the responder on {name} failed: {type(error).__name__}") from error

    @contextlib.asynccontextmanager
    async def respond(self, name: str, handler: Handler, *, run_id: str = "") -> AsyncIterator[None]:
        handlers = self._responders[find(name).name, run_id]
        handlers.append(handler)
        try:
            yield
        finally:
            handlers.remove(handler)

    async def streams(self) -> list[StreamState]:
        return [
            StreamState(name, len(log.messages), log.size_bytes, log.first_sequence, log.last_sequence, False)
            for name, log in sorted(self._logs.items())
        ]

    async def close(self) -> None:
        self._closed = True
        await self._wake()

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Unavailable("the bus is closed")


def _copy(envelope: Envelope) -> Envelope:
    """Parties share no object, as they would not over a wire."""
    return Envelope.FromString(envelope.SerializeToString())
