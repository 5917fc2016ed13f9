"""Own cursors: a subscriber keeps what it applied last, in its own storage.

The broker's consumer positions lag behind by up to a second and are lost with it, so
nothing here relies on them. A consumer whose effects are in a database saves
`Cursor.advanced(delivery)` in the transaction of the effect: applied exactly once. One
that uses `apply` with a store of its own may apply the last envelope again after a crash.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from esper import errors
from esper.oona.port import Bus, Delivery, Envelope


@dataclass(frozen=True, slots=True)
class CursorState:
    """The envelope applied last: `index` of `count` in the bus message `sequence`; 0 is none.

    `recent`: ids of the last envelopes applied, oldest first. They tell a repeat that
    has a sequence of its own, because it was published again after the broker forgot it.
    """

    sequence: int = 0
    index: int = 0
    count: int = 1
    recent: tuple[str, ...] = ()


class CursorStore(Protocol):
    """Where a consumer keeps its cursors, by key."""

    async def load(self, key: str) -> CursorState | None:
        """What was saved last; None where nothing was."""

    async def save(self, key: str, state: CursorState) -> None:
        """Keep `state`; durable when it returns."""


class Cursor:
    """One consumer's place in one subject."""

    def __init__(self, store: CursorStore, key: str, state: CursorState, remember: int, save_every: int) -> None:
        if remember < 1 or save_every < 1:
            raise errors.InvalidRequest(f"cursor {key!r}: remember {remember} and save_every {save_every} must be >= 1")
        self._store = store
        self._key = key
        self._state = state
        self._remember = remember
        self._save_every = save_every
        self._unsaved = 0
        self._recent = dict.fromkeys(state.recent)

    @classmethod
    async def open(cls, store: CursorStore, key: str, *, remember: int = 64, save_every: int = 1) -> "Cursor":
        """The cursor `key` where it was left.

        `remember`: ids kept to tell repeats. `save_every`: envelopes between two saves;
        after a crash up to so many are applied again. 1 costs a disk sync per envelope.
        """
        return cls(store, key, await store.load(key) or CursorState(), remember, save_every)

    @property
    def state(self) -> CursorState:
        """Where it is."""
        return self._state

    @property
    def after_sequence(self) -> int:
        """Where to subscribe. A bus message that was applied in part is delivered again, and skipped in part."""
        state = self._state
        complete = state.index + 1 >= state.count
        return state.sequence if complete else state.sequence - 1

    def seen(self, delivery: Delivery) -> bool:
        """Whether it was applied: by place, or by id."""
        place = (delivery.sequence, delivery.index)
        return place <= (self._state.sequence, self._state.index) or delivery.envelope.id in self._recent

    def advanced(self, delivery: Delivery) -> CursorState:
        """The state once `delivery` is applied too; never behind the present one."""
        recent = dict.fromkeys((*self._recent, delivery.envelope.id))
        kept = tuple(recent)[-self._remember :]
        place = max((delivery.sequence, delivery.index), (self._state.sequence, self._state.index))
        count = delivery.count if place == (delivery.sequence, delivery.index) else self._state.count
        return CursorState(*place, count, kept)

    def move(self, state: CursorState) -> None:
        """Take over a state the consumer has saved itself."""
        self._state = state
        self._recent = dict.fromkeys(state.recent)

    async def apply(self, delivery: Delivery, effect: Callable[[Envelope], Awaitable[object]]) -> bool:
        """Run `effect` unless it ran before for this envelope, then save. False: it was skipped."""
        fresh = not self.seen(delivery)
        if fresh:
            await effect(delivery.envelope)
        state = self.advanced(delivery)
        if state != self._state:
            self.move(state)
            self._unsaved += 1
        if self._unsaved >= self._save_every:
            await self.save()
        return fresh

    async def save(self) -> None:
        """Save what `apply` has not saved yet."""
        if self._unsaved:
            await self._store.save(self._key, self._state)
            self._unsaved = 0


async def follow(
    bus: Bus,
    name: str,
    cursor: Cursor,
    effect: Callable[[Envelope], Awaitable[object]],
    *,
    run_id: str | None = None,
) -> None:
    """Apply everything on `name` from where `cursor` is, until the bus is closed.

    Raises OutOfRange when the stream no longer holds what comes next: go on from the
    oldest kept with `cursor.move(CursorState())`, if the gap is acceptable.
    """
    try:
        async for delivery in bus.subscribe(name, run_id=run_id, after_sequence=cursor.after_sequence):
            await cursor.apply(delivery, effect)
    finally:
        await cursor.save()


class MemoryCursorStore:
    """Cursors that end with the process."""

    def __init__(self) -> None:
        self._states: dict[str, CursorState] = {}

    async def load(self, key: str) -> CursorState | None:
        return self._states.get(key)

    async def save(self, key: str, state: CursorState) -> None:
        self._states[key] = state


class FileCursorStore:
    """One file per cursor in `folder`, replaced as a whole and synced to disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    async def load(self, key: str) -> CursorState | None:
        return await asyncio.to_thread(self._read, self._path(key))

    async def save(self, key: str, state: CursorState) -> None:
        await asyncio.to_thread(_replace, self._path(key), _write(state))

    def _path(self, key: str) -> Path:
        return self._folder / (quote(key, safe="") + ".json")

    @staticmethod
    def _read(path: Path) -> CursorState | None:
        try:
            fields = json.loads(path.read_bytes())
            return CursorState(fields["sequence"], fields["index"], fields["count"], tuple(fields["recent"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise errors.Corrupt(f"cursor file {path} does not parse; delete it to begin again") from error


def _write(state: CursorState) -> bytes:
    return json.dumps(
        {"sequence": state.sequence, "index": state.index, "count": state.count, "recent": state.recent}
    ).encode()


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
