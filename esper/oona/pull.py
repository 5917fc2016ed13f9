"""Messages of one JetStream consumer over one connection, asked for in batches and handed on as they come.

nats-py's `fetch` waits for its batch, raises TimeoutError when there is nothing, and does
not say that the connection is gone. Here a pull stays open at the server, every end of
it is a status message, and a lost connection is Unavailable at once.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import api

from esper import errors
from esper.oona.link import Link

# A pull that finds nothing ends after this; silence for longer means that the consumer is gone.
EXPIRES_S = 30.0
_GRACE_S = 10.0
# Room in the client for one pull, so that large messages do not add up.
_MAX_BYTES = 32 * 1024 * 1024
_HEARTBEAT = "100"


class Pull:
    """The open end of a consumer. `pending`: messages that were waiting when the consumer was made."""

    def __init__(self, link: Link, stream: str, consumer: str, batch: int, pending: int) -> None:
        self._link = link
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = link.client.new_inbox()
        self._batch = batch
        self._asked = 0
        self._arrived: deque[Msg] = deque()
        self._some = asyncio.Event()
        self._subscription: Subscription | None = None
        self._fault: errors.EsperError | None = None
        self.pending = pending

    async def next(self) -> Msg:
        """The next message.

        Raises Unavailable when the connection is lost, NotFound when the consumer is gone.
        """
        while True:
            if self._fault is not None and not self._arrived:
                raise self._fault
            # Of a batch, the next part travels while this one is used; a single item is asked for when it is wanted.
            if (self._asked == 0 and not self._arrived) or (self._batch > 1 and self._asked <= self._batch // 2):
                await self._ask()
            if self._arrived:
                return self._arrived.popleft()
            async with self._link.held(EXPIRES_S + _GRACE_S):
                await self._some.wait()
            self._some.clear()

    async def _ask(self) -> None:
        wanted = {"batch": self._batch, "expires": int(EXPIRES_S * 1e9), "max_bytes": _MAX_BYTES}
        async with self._link.held(_GRACE_S):
            if self._subscription is None:
                # The pull bounds what can be waiting here; beyond limits of its own nats-py drops messages.
                self._subscription = await self._link.client.subscribe(
                    self._inbox, cb=self._take, pending_msgs_limit=0, pending_bytes_limit=0
                )
            self._asked += self._batch
            await self._link.client.publish(self._subject, json.dumps(wanted).encode(), self._inbox)

    async def _take(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get(api.Header.STATUS.value)
        if status is None:
            self._asked = max(0, self._asked - 1)
            self._arrived.append(message)
        elif status != _HEARTBEAT:
            # The end of one of our pulls; the header says how many messages of it will not come.
            self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", self._asked)))
            self._fault = self._fault or _fault(status, headers.get(api.Header.DESCRIPTION.value, ""))
        self._some.set()

    async def close(self) -> None:
        """Take no more."""
        if self._subscription is not None and not self._link.lost.is_set():
            with contextlib.suppress(nats.errors.Error, errors.Unavailable, errors.DeadlineExceeded):
                async with self._link.held(2.0):
                    await self._subscription.unsubscribe()


@contextlib.asynccontextmanager
async def pulling(link: Link, stream: str, config: api.ConsumerConfig, batch: int) -> AsyncIterator[Pull]:
    """A pull on the consumer `config` describes, made if need be; one without a durable name is removed at the end."""
    async with link.held(10.0):
        info = await link.js.add_consumer(stream, config)
    pull = Pull(link, stream, info.name, batch, info.num_pending or 0)
    try:
        yield pull
    finally:
        await pull.close()
        if config.durable_name is None and not link.lost.is_set():
            with contextlib.suppress(errors.EsperError):
                async with link.held(2.0):
                    await link.js.delete_consumer(stream, info.name)


def _fault(status: str, words: str) -> errors.EsperError | None:
    """What the end of a pull means; None for those that are in order: it is full, or nothing came in its time."""
    if status in ("404", "408") or (status == "409" and ("MaxBytes" in words or "Batch Completed" in words)):
        return None
    if status == "503" or "Deleted" in words:
        return errors.NotFound(f"the consumer is gone ({status} {words})")
    return errors.Unavailable(f"the pull was ended: {status} {words}")
