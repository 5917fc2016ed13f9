"""Work groups in memory: who holds what, what comes again and when, what is given up."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from esper import errors
from esper.oona.port import DeadLetter, Envelope, WorkOptions


@dataclass
class Held:
    """One item of a group. `due_s`: loop time at which it may be given out (again)."""

    sequence: int
    envelope: Envelope
    deliveries: int = 0
    due_s: float = 0.0
    reason: str = ""


@dataclass
class Group:
    """The members' common state. Times are the event loop's."""

    offered: int = 0
    fresh: deque[Held] = field(default_factory=deque)
    pending: dict[int, Held] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)

    def offer(self, sequence: int, envelope: Envelope) -> None:
        """A new item."""
        self.fresh.append(Held(sequence, envelope))

    def take(self, options: WorkOptions) -> Held | None:
        """The next item for a member: one that is due again, else a new one."""
        now = asyncio.get_running_loop().time()
        while True:
            due = [held for held in self.pending.values() if held.due_s <= now]
            held = min(due, key=lambda h: h.sequence) if due else self.fresh.popleft() if self.fresh else None
            if held is None:
                return None
            if held.deliveries < options.max_deliveries:
                held.deliveries += 1
                held.reason = "not settled in time"
                held.due_s = now + options.redeliver_after_s
                self.pending[held.sequence] = held
                return held
            self.bury(held, held.reason)

    def bury(self, held: Held, reason: str) -> None:
        """Give an item up."""
        self.pending.pop(held.sequence, None)
        self.dead.append(DeadLetter(held.sequence, held.envelope, held.deliveries, reason))

    def next_due_s(self) -> float | None:
        """Seconds until an item is due again; None where none is out."""
        if not self.pending:
            return None
        return max(0.0, min(h.due_s for h in self.pending.values()) - asyncio.get_running_loop().time())


class HeldItem:
    """The port's WorkItem over a group. A late `ack` counts; a late `nack` of an item given to another does not."""

    def __init__(self, group: Group, held: Held, options: WorkOptions, wake: Callable[[], Awaitable[None]]) -> None:
        self._group = group
        self._held = held
        self._options = options
        self._wake = wake
        self._delivery = held.deliveries
        self._settled = False

    @property
    def sequence(self) -> int:
        return self._held.sequence

    @property
    def envelope(self) -> Envelope:
        return self._held.envelope

    @property
    def deliveries(self) -> int:
        return self._delivery

    async def ack(self) -> None:
        self._settle()
        self._group.pending.pop(self.sequence, None)

    async def nack(self, reason: str, delay_s: float = 0.0) -> None:
        self._settle()
        if not self._ours():
            return
        if self._delivery >= self._options.max_deliveries:
            self._group.bury(self._held, reason)
        else:
            self._held.reason = reason
            self._held.due_s = asyncio.get_running_loop().time() + delay_s
        await self._wake()

    async def reject(self, reason: str) -> None:
        self._settle()
        if self._ours():
            self._group.bury(self._held, reason)

    async def extend(self) -> None:
        if self._ours() and not self._settled:
            self._held.due_s = asyncio.get_running_loop().time() + self._options.redeliver_after_s

    def _ours(self) -> bool:
        return self._group.pending.get(self.sequence) is self._held and self._held.deliveries == self._delivery

    def _settle(self) -> None:
        if self._settled:
            raise errors.PreconditionFailed(f"{self.envelope.id!r}: this delivery is settled already")
        self._settled = True
