"""Work groups and dead letters on JetStream: one durable consumer per name and group."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable

from nats.aio.msg import Msg
from nats.js import api

from esper import errors
from esper.oona import streams
from esper.oona.connection import Line
from esper.oona.link import Link
from esper.oona.port import DeadLetter, Envelope, WorkItem, WorkOptions
from esper.oona.pull import pulling
from esper.oona.subjects import filters, find, run_token

log = logging.getLogger(__name__)

SETTLE_S = 5.0
_DELIVERIES, _REASON, _SEQUENCE = "Esper-Deliveries", "Esper-Reason", "Esper-Sequence"

Decode = Callable[[str, str, bytes], list[Envelope]]


class Worker:
    """One member of a group."""

    def __init__(
        self,
        line: Line,
        prefix: str,
        name: str,
        group: str,
        options: WorkOptions,
        decode: Decode,
        reopened: Callable[[str, Exception], None],
    ) -> None:
        self._line = line
        self._prefix = prefix
        self._name = name
        self._group = group
        self._options = options
        self._decode = decode
        self._reopened = reopened

    async def items(self) -> AsyncIterator[WorkItem]:
        """Items until the line is closed; each is asked for when the one before is done, so others get their share."""
        stream = streams.stream_name(self._prefix, find(self._name).stream)
        while not self._line.closed:
            try:
                link = await self._line.link()
                async with pulling(link, stream, self._consumer(), batch=1) as pull:
                    while True:
                        item = await self._item(await pull.next())
                        if item is not None:
                            yield item
            except (errors.Unavailable, errors.DeadlineExceeded, errors.NotFound) as error:
                self._reopened(self._name, error)
                await asyncio.sleep(0.02)

    def _consumer(self) -> api.ConsumerConfig:
        durable = f"work-{self._group}-{self._name.replace('.', '-')}"
        return api.ConsumerConfig(
            name=durable,
            durable_name=durable,
            filter_subject=filters(self._prefix, self._name, None)[0],
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=self._options.redeliver_after_s,
            max_deliver=-1,  # counted here: at its own limit the server goes silent, and the item stays for ever
        )

    async def _item(self, message: Msg) -> "_Item | None":
        envelopes = self._decode(self._name, message.subject, message.data)
        if not envelopes:
            await self.settle(message, b"+TERM")
            return None
        item = _Item(self, message, envelopes[0], self._options)
        if item.deliveries <= self._options.max_deliveries:
            return item
        await self.bury(item, item.deliveries - 1, "not settled in time")
        return None

    async def settle(self, message: Msg, answer: bytes) -> None:
        """Tell the broker, on whatever connection there is now: the item may have come over an earlier one."""
        link = await self._line.link(SETTLE_S)
        async with link.held(SETTLE_S):
            await link.client.request(message.reply, answer, timeout=SETTLE_S + 1)

    async def bury(self, item: "_Item", deliveries: int, reason: str) -> None:
        """Store a dead letter, then take the item from the group. Doing it twice stores it once."""
        subject = streams.dead_subject(self._prefix, self._group, self._name, run_token(item.envelope.run_id))
        stream = streams.stream_name(self._prefix, streams.DEAD)
        headers = {
            api.Header.MSG_ID.value: f"{self._group}/{self._name}/{item.sequence}",
            _DELIVERIES: str(deliveries),
            _SEQUENCE: str(item.sequence),
            _REASON: reason.encode("ascii", "replace").decode()[:1024],
        }
        link = await self._line.link(SETTLE_S)
        async with link.held(SETTLE_S):
            await link.js.publish(
                subject, item.envelope.SerializeToString(), stream=stream, headers=headers, timeout=SETTLE_S + 1
            )
        await self.settle(item.message, b"+TERM")
        log.error("%s: group %s gave it up after %d deliveries: %s", item.envelope.id, self._group, deliveries, reason)

    async def dead_letters(self) -> list[DeadLetter]:
        """What the group gave up, oldest first."""
        stream = streams.stream_name(self._prefix, streams.DEAD)
        config = api.ConsumerConfig(
            filter_subject=streams.dead_subject(self._prefix, self._group, self._name, ">"),
            ack_policy=api.AckPolicy.NONE,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=60.0,
        )
        link: Link = await self._line.link(SETTLE_S)
        async with pulling(link, stream, config, batch=64) as pull:
            return [_dead_letter(await pull.next()) for _ in range(pull.pending)]


class _Item:
    """The port's WorkItem."""

    def __init__(self, worker: Worker, message: Msg, envelope: Envelope, options: WorkOptions) -> None:
        self._worker = worker
        self.message = message
        self._envelope = envelope
        self._options = options
        self._settled = False
        metadata = message.metadata
        self._sequence = metadata.sequence.stream
        self._deliveries = metadata.num_delivered or 1

    @property
    def sequence(self) -> int:
        return self._sequence

    @property
    def envelope(self) -> Envelope:
        return self._envelope

    @property
    def deliveries(self) -> int:
        return self._deliveries

    async def ack(self) -> None:
        self._settle()
        await self._worker.settle(self.message, b"+ACK")

    async def nack(self, reason: str, delay_s: float = 0.0) -> None:
        self._settle()
        if self._deliveries >= self._options.max_deliveries:
            await self._worker.bury(self, self._deliveries, reason)
        else:
            delay = json.dumps({"delay": int(delay_s * 1e9)}).encode()
            await self._worker.settle(self.message, b"-NAK " + delay if delay_s > 0 else b"-NAK")

    async def reject(self, reason: str) -> None:
        self._settle()
        await self._worker.bury(self, self._deliveries, reason)

    async def extend(self) -> None:
        if not self._settled:
            await self._worker.settle(self.message, b"+WPI")

    def _settle(self) -> None:
        if self._settled:
            raise errors.PreconditionFailed(f"{self._envelope.id!r}: this delivery is settled already")
        self._settled = True


def _dead_letter(message: Msg) -> DeadLetter:
    headers = message.headers or {}
    return DeadLetter(
        sequence=int(headers.get(_SEQUENCE, 0)),
        envelope=Envelope.FromString(message.data),
        deliveries=int(headers.get(_DELIVERIES, 0)),
        reason=headers.get(_REASON, ""),
    )
