"""The forge's queue: bounded, by priority, one entry per request key however often it is asked for."""

import asyncio
import heapq
import itertools
from collections.abc import Coroutine
from typing import Any

from esper.api.tezzeret.v1 import forge_pb2
from esper.artifact.bundle import Artifact
from esper.errors import Exhausted, Unavailable
from esper.tezzeret.codec import Order

Attempt = tuple[forge_pb2.CompilationRecord, Artifact | None]


class Ticket:
    """One order in the queue or at work, and everybody who waits for it.

    `operation_name` is for the record; whoever follows the order by an operation sets it. `called_off`: nobody
    waits any more, and it is not compiled to its end.
    """

    def __init__(self, key: str, order: Order) -> None:
        self.key = key
        self.order = order
        self.operation_name = ""
        self.priority = 0
        self.waiters = 0
        self.started = False
        self.called_off = False
        self._attempt: asyncio.Task[Attempt] | None = None
        self.done: asyncio.Future[forge_pb2.CompilationRecord] = asyncio.get_running_loop().create_future()

    def settle(self, result: forge_pb2.CompilationRecord | Exception) -> None:
        """Give everybody who waits the record, or the reason why there is none."""
        if self.done.done():
            return
        if isinstance(result, Exception):
            self.done.set_exception(result)
            self.done.exception()  # somebody may have stopped waiting; that is not an error to log
        else:
            self.done.set_result(result)

    async def compile(self, work: Coroutine[Any, Any, Attempt]) -> Attempt | None:
        """What `work` gives; None where the order was called off, before or meanwhile: it has ended by then."""
        if self.called_off:
            work.close()
            return None
        self._attempt = asyncio.create_task(work)
        try:
            await asyncio.wait([self._attempt])
        finally:
            self._attempt.cancel()  # the forge is stopping
        return None if self.called_off else self._attempt.result()

    def call_off(self) -> bool:
        """End the order's compilation, or have it never begin. False: it is compiled, and is stored and told."""
        if self._attempt is not None and self._attempt.done():
            return False
        self.called_off = True
        if self._attempt is not None:
            self._attempt.cancel()
        return True


class Queue:
    """Tickets waiting; highest priority first, then first come."""

    def __init__(self, max_queued: int) -> None:
        self.max_queued = max_queued
        self._heap: list[tuple[int, int, Ticket]] = []
        self._order = itertools.count()
        self._open: dict[str, Ticket] = {}  # waiting or at work, by key
        self._arrived = asyncio.Event()

    @property
    def queued(self) -> int:
        return sum(not ticket.started for ticket in self._open.values())

    def find(self, key: str) -> Ticket | None:
        """The ticket of an equal order that is waiting or at work."""
        return self._open.get(key)

    def busy_with(self, blueprint_id: str, besides: Ticket) -> bool:
        """Whether another order for this blueprint is waiting or at work."""
        return any(t is not besides and t.order.blueprint_id == blueprint_id for t in self._open.values())

    def put(self, key: str, order: Order) -> Ticket:
        """A new ticket. Raises Exhausted where the queue is full."""
        if self.queued >= self.max_queued:
            raise Exhausted(
                f"the forge's queue holds {self.queued} orders, the limit; wait for some to end, or raise max_queued"
            )
        ticket = Ticket(key, order)
        self._open[key] = ticket
        self._push(ticket, 0)
        return ticket

    def raise_priority(self, ticket: Ticket, priority: int) -> None:
        """Move a waiting ticket forward; one that stands higher, or is at work, stays."""
        if priority > ticket.priority and not ticket.started:
            self._push(ticket, priority)

    async def take(self) -> Ticket:
        """The next ticket, now at work; waits for one."""
        while True:
            while self._heap:
                _, _, ticket = heapq.heappop(self._heap)
                if not ticket.started and self._open.get(ticket.key) is ticket:  # else pushed twice, or dropped
                    ticket.started = True
                    return ticket
            self._arrived.clear()
            await self._arrived.wait()

    def drop(self, ticket: Ticket) -> None:
        """The ticket is done with, or nobody wants it."""
        if self._open.get(ticket.key) is ticket:
            del self._open[ticket.key]

    def close(self) -> None:
        """Nobody will do what is left."""
        for ticket in list(self._open.values()):
            ticket.settle(Unavailable("the forge is stopping; send the request again when it is back"))
        self._open.clear()
        self._heap.clear()

    def _push(self, ticket: Ticket, priority: int) -> None:
        ticket.priority = priority
        heapq.heappush(self._heap, (-priority, next(self._order), ticket))
        self._arrived.set()
