"""What the services of one process share: the bus, channels to peers, keys, pools, tasks, one server."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from esper.artifact.keys import SigningKey, TrustRoots, load_or_create_key
from esper.errors import NotFound
from esper.nissa.metrics import Metrics
from esper.oona.cursor import Cursor, FileCursorStore
from esper.oona.port import Bus
from esper.rpc.client import open_channel
from esper.rpc.operations import Operations
from esper.rpc.server import Server
from esper.runtime.home import Home
from esper.runtime.pool import Pool
from esper.runtime.trust import read_trust, write_trust

log = logging.getLogger(__name__)

MAX_BACKOFF_S = 10.0


def now() -> Timestamp:
    """The time, as messages carry it."""
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp


@dataclass(slots=True)
class Platform:
    """Handed to each service's builder."""

    home: Home
    bus: Bus
    server: Server
    token: str
    workers: int
    components: tuple[str, ...]
    peers: Mapping[str, str]
    stack: AsyncExitStack
    roots: TrustRoots = field(default_factory=TrustRoots)
    metrics: Metrics | None = None  # where Nissa serves
    unsafe_no_jail: bool = False  # evaluate without isolation, and promote nothing
    forge_targets: tuple[str, ...] = ("cpu",)  # what tezzeret makes kernels for, where it serves here
    address: str = ""  # of this process's server, once it listens
    broker_url: str = ""
    pools: dict[str, Pool] = field(default_factory=dict)
    operations: Operations | None = None
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    _starting: list[tuple[str, Callable[[], Awaitable[None]]]] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _first: set[str] = field(default_factory=set)

    def channel_to(self, component: str) -> Callable[[], grpc.aio.Channel]:
        """A channel to a component, opened at the first call: here, or where `peers` says it is."""

        def channel() -> grpc.aio.Channel:
            address = self.address if component in self.components else self.peers.get(component, "")
            if not address:
                raise NotFound(f"nobody said where {component} listens; name it: --peer {component}=HOST:PORT")
            if address not in self._channels:
                self._channels[address] = open_channel(address, token=self.token)
            return self._channels[address]

        return channel

    def mount(self, add: Callable[[Any, Any], None], servicer: object) -> None:
        self.server.mount(add, servicer)

    def task(self, name: str, work: Callable[[], Awaitable[None]], *, first: bool = False) -> None:
        """Do `work` while the process serves; again, with back-off, if it ends with an error.

        `first`: it ends, and the process is not ready before it has.
        """
        self._starting.append((name, work))
        if first:
            self._first.add(name)

    def start_tasks(self) -> None:
        """The server listens: begin."""
        self._tasks = [asyncio.create_task(self._again(name, work), name=name) for name, work in self._starting]

    async def ready(self) -> None:
        """Return when what must come first is done."""
        await asyncio.gather(*(task for task in self._tasks if task.get_name() in self._first))

    async def close(self) -> None:
        left = {task for task in self._tasks if not task.done()}
        while left:  # again: `asyncio.wait_for` of Python 3.11, and nats-py, may lose a cancellation
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=1.0)
        for channel in self._channels.values():
            await channel.close(None)

    async def _again(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Between two tries the health of the component's services is NOT_SERVING."""
        component, backoff_s = name.partition("/")[0], 0.1
        while True:
            try:
                return await work()
            except Exception:  # a consumer that fails is restarted; what it was doing comes again
                log.exception("%s failed; it begins again in %.1f s", name, backoff_s)
            await self._say_serving(component, False)
            await asyncio.sleep(backoff_s)
            await self._say_serving(component, True)
            backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)

    async def _say_serving(self, component: str, serving: bool) -> None:
        for service in self.server.services:
            if service.startswith(f"esper.api.{component}."):
                await self.server.set_serving(service, serving)

    async def cursor(self, key: str) -> Cursor:
        """The durable place of one consumer in one subject."""
        return await Cursor.open(FileCursorStore(self.home.folder("cursors")), key)

    async def pool(self, name: str, kinds: Mapping[str, str], size: int) -> Pool:
        """A pool of worker processes, started now."""
        pool = Pool(name, kinds, size=size, log=self.home.folder("logs") / f"{name}.log")
        await pool.start()
        self.stack.push_async_callback(pool.stop)
        self.pools[name] = pool
        return pool

    def key(self, name: str) -> SigningKey:
        """This home's signing key of one role, made at the first call."""
        return load_or_create_key(self.home.key(name))


def trust_of(home: Home, components: tuple[str, ...]) -> TrustRoots:
    """Whose signatures count: a home with both keys trusts them; a part of a cluster trusts what its file says."""
    if {"tezzeret", "urabrask"} <= set(components):
        keys = [load_or_create_key(home.key(name)).public_key for name in ("forge", "evaluation")]
        write_trust(home.trust_file, TrustRoots((keys[0],), (keys[1],)))
    return read_trust(home.trust_file)
