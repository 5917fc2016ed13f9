"""The port on NATS JetStream."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from nats.js import api

from esper import errors
from esper.oona import streams, wire
from esper.oona.calls import Calls
from esper.oona.checks import check_position, check_work
from esper.oona.connection import Address, Line, LineOptions
from esper.oona.jetstream_work import Worker
from esper.oona.link import Link
from esper.oona.port import DeadLetter, Delivery, Envelope, Handler, Published, StreamState, WorkItem, WorkOptions
from esper.oona.pull import pulling
from esper.oona.subjects import PREFIX, Subject, build, check_prefix, check_run_id, filters, find, parse

log = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S = 30.0
# One attempt; after it the same id is sent again, and stored once.
ATTEMPT_S = 5.0
# Publishes under way together, and those that may wait besides.
WINDOW = 256
MAX_WAITING = 4096
READ_BATCH = 256


class JetStreamBus:
    """The port. Make it with `connect`; close it at the end."""

    def __init__(self, line: Line, address: Address, prefix: str, max_waiting: int) -> None:
        self._line = line
        self._address = address
        self._prefix = prefix
        self._max_waiting = max_waiting
        self._waiting = 0
        self._window = asyncio.Semaphore(WINDOW)
        self._random = random.Random()
        self._calls = Calls(line, prefix)
        self._limit_bytes = wire.MAX_BYTES
        self.retries = 0  # publishes sent again
        self.refused = 0  # messages found on our subjects that are not ours
        self.reopened = 0  # consumers made anew, after the broker was away or forgot them

    @classmethod
    async def connect(
        cls,
        address: Address,
        *,
        prefix: str = PREFIX,
        name: str = "esper",
        timeout_s: float = 10.0,
        max_waiting: int = MAX_WAITING,
        options: LineOptions = LineOptions(),  # noqa: B008  frozen
    ) -> "JetStreamBus":
        """A bus on the broker at `address`; makes the streams that are missing.

        `name`: how the broker's monitoring calls us. `max_waiting`: publishes that may
        wait for the broker; one more is Exhausted.

        Raises Unavailable when no broker answers within `timeout_s` or it is too old,
        Unauthenticated when it does not know our token.
        """
        check_prefix(prefix)

        async def prepare(link: Link) -> None:
            try:
                async with link.held(10.0):
                    await streams.ensure(link.js, prefix)
            except errors.Exhausted as error:
                raise errors.Exhausted(
                    f"{error}: the streams below {prefix!r} reserve {streams.reserved_bytes(prefix)} bytes; give the "
                    "broker more (max_file), or remove the streams of a prefix that is out of use"
                ) from error

        line = Line(address, name=name, options=options, prepare=prepare)
        await line.open(timeout_s)
        bus = cls(line, address, prefix, max_waiting)
        link = await line.link(timeout_s)
        bus._limit_bytes = min(wire.MAX_BYTES, link.client.max_payload - 4096)
        return bus

    @property
    def max_envelope_bytes(self) -> int:
        return self._limit_bytes

    @property
    def line(self) -> Line:
        """The line to the broker, for what else this package keeps there."""
        return self._line

    @property
    def prefix(self) -> str:
        """What subjects and streams begin with."""
        return self._prefix

    @property
    def connections(self) -> int:
        """Connections made so far; one more than times the broker was lost."""
        return self._line.connections

    async def publish(
        self, name: str, envelope: Envelope, *, rank: int | None = None, timeout_s: float | None = None
    ) -> Published:
        return (await self.publish_batch(name, [envelope], rank=rank, timeout_s=timeout_s))[0]

    async def publish_batch(
        self, name: str, envelopes: Sequence[Envelope], *, rank: int | None = None, timeout_s: float | None = None
    ) -> list[Published]:
        subject = find(name)
        run_id = wire.check_group(name, envelopes)
        address = build(self._prefix, name, run_id, rank)
        groups = [list(envelopes)] if subject.batched else [[envelope] for envelope in envelopes]
        # Encoded before the first is sent: a batch with one envelope too large is refused whole.
        encoded = [(wire.message_id(g), wire.encode(subject, g, self._limit_bytes), len(g)) for g in groups]
        published: list[Published] = []
        for message_id, data, count in encoded:
            published += [await self._store(subject, address, message_id, data, timeout_s)] * count
        return published

    async def _store(
        self, subject: Subject, address: str, message_id: str, data: bytes, timeout_s: float | None
    ) -> Published:
        if self._waiting >= self._max_waiting:
            raise errors.Exhausted(
                f"{self._waiting} publishes wait for the broker at {self._address.where}, at most {self._max_waiting} "
                "may; wait for some of them, or for the broker"
            )
        self._waiting += 1
        try:
            async with self._window:
                wait_s = PUBLISH_TIMEOUT_S if timeout_s is None else timeout_s
                return await self._store_in_turn(subject, address, message_id, data, wait_s)
        finally:
            self._waiting -= 1

    async def _store_in_turn(
        self, subject: Subject, address: str, message_id: str, data: bytes, timeout_s: float
    ) -> Published:
        clock = asyncio.get_running_loop().time
        deadline, pause_s = clock() + timeout_s, 0.02
        while True:
            left_s = deadline - clock()
            try:
                link = await self._line.link(max(0.0, left_s))
                async with link.held(min(left_s, ATTEMPT_S)):
                    ack = await link.js.publish(
                        address,
                        data,
                        timeout=ATTEMPT_S + 1,
                        stream=streams.stream_name(self._prefix, subject.stream),
                        headers={api.Header.MSG_ID.value: message_id},
                    )
                return Published(ack.seq, bool(ack.duplicate))
            except (errors.Unavailable, errors.DeadlineExceeded):
                if self._line.closed or clock() + pause_s >= deadline:
                    raise
                await self._repair()
            self.retries += 1
            await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, 1.0)

    async def _repair(self) -> None:
        """Make streams that were removed while we are connected; no stream looks like no answer."""
        with contextlib.suppress(errors.Unavailable, errors.DeadlineExceeded):
            link = await self._line.link(0.0)
            async with link.held(ATTEMPT_S):
                await streams.ensure(link.js, self._prefix)

    def subscribe(
        self,
        name: str,
        *,
        run_id: str | None = None,
        after_sequence: int = 0,
        from_time: datetime | None = None,
    ) -> AsyncIterator[Delivery]:
        find(name)
        if run_id:
            check_run_id(run_id)
        return self._read(name, run_id, after_sequence, from_time)

    async def _read(
        self, name: str, run_id: str | None, after: int, from_time: datetime | None
    ) -> AsyncIterator[Delivery]:
        stream = streams.stream_name(self._prefix, find(name).stream)
        chosen = filters(self._prefix, name, run_id)
        while not self._line.closed:
            try:
                link = await self._line.link()
                await self._check_position(link, stream, name, after, from_time)
                config = _reader(chosen, after, from_time)
                async with pulling(link, stream, config, READ_BATCH) as pull:
                    while True:
                        message = await pull.next()
                        sequence = message.metadata.sequence.stream
                        if sequence <= after:
                            continue
                        envelopes = self._decode(name, message.subject, message.data)
                        for index, envelope in enumerate(envelopes):
                            yield Delivery(sequence, envelope, index, len(envelopes))
                        after, from_time = sequence, None
            except (errors.Unavailable, errors.DeadlineExceeded, errors.NotFound) as error:
                self._reopened(name, error)
                await asyncio.sleep(0.02)

    def _reopened(self, name: str, error: Exception) -> None:
        self.reopened += not self._line.closed
        log.debug("a consumer of %s is made anew: %s", name, error)

    async def _check_position(self, link: Link, stream: str, name: str, after: int, from_time: datetime | None) -> None:
        async with link.held(10.0):
            state = (await link.js.stream_info(stream)).state
        check_position(name, after, from_time, state.first_seq, state.last_seq)

    def _decode(self, name: str, subject: str, data: bytes) -> list[Envelope]:
        """The envelopes of a bus message; none, counted and logged, of one that is not ours."""
        try:
            envelopes = wire.decode(name, data)
            if parse(self._prefix, subject).run_id != envelopes[0].run_id:
                raise errors.InvalidRequest(f"it carries an envelope of run {envelopes[0].run_id!r}")
            return envelopes
        except errors.InvalidRequest as error:
            self.refused += 1
            log.error("a message on %s is skipped: %s", subject, error)
            return []

    def work(self, name: str, group: str, options: WorkOptions = WorkOptions()) -> AsyncIterator[WorkItem]:  # noqa: B008
        check_work(find(name), group)
        return self._worker(name, group, options).items()

    async def dead_letters(self, name: str, group: str) -> list[DeadLetter]:
        check_work(find(name), group)
        return await self._worker(name, group, WorkOptions()).dead_letters()

    def _worker(self, name: str, group: str, options: WorkOptions) -> Worker:
        return Worker(self._line, self._prefix, name, group, options, self._decode, self._reopened)

    async def request(self, name: str, envelope: Envelope, *, timeout_s: float) -> Envelope:
        return await self._calls.request(name, envelope, timeout_s)

    def respond(self, name: str, handler: Handler, *, run_id: str = "") -> contextlib.AbstractAsyncContextManager[None]:
        find(name)
        return self._calls.respond(name, handler, run_id)

    async def streams(self) -> list[StreamState]:
        link = await self._line.link(ATTEMPT_S)
        names = [config.name for config in streams.configurations(self._prefix)]
        async with link.held(ATTEMPT_S):
            found = [await link.js.stream_info(name) for name in names if name is not None]
        states = (streams.state_of(info, self._prefix, self._address.sync_always) for info in found)
        return sorted(states, key=lambda state: state.name)

    async def close(self) -> None:
        await self._line.close()


def _reader(filter_subjects: list[str], after: int, from_time: datetime | None) -> api.ConsumerConfig:
    """An ephemeral consumer from a position; our own cursor takes the place of acknowledgements."""
    config = api.ConsumerConfig(
        filter_subjects=filter_subjects,
        ack_policy=api.AckPolicy.NONE,
        deliver_policy=api.DeliverPolicy.ALL,
        mem_storage=True,
        num_replicas=1,
        inactive_threshold=120.0,
    )
    if from_time is not None:
        config.deliver_policy, config.opt_start_time = api.DeliverPolicy.BY_START_TIME, from_time
    elif after:
        config.deliver_policy, config.opt_start_seq = api.DeliverPolicy.BY_START_SEQUENCE, after + 1
    return config
