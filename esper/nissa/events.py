"""The log of one run's events, and watching it: replay from a position, then live.

The log is the truth; every file in a run's directory is made from it. Watchers read the
log too, and are only woken by an append, so that they neither miss an event nor see one
twice.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.errors import InvalidRequest
from esper.records import RecordLog

_RUN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class EventLog:
    """One run's events by position, from 1. Appended to from one thread."""

    def __init__(self, path: Path) -> None:
        self._log = RecordLog(path, pb.RunEvent, None)
        self._watchers: set[asyncio.Event] = set()

    def append(self, event: pb.RunEvent, key: str) -> tuple[int, bool]:
        """Store an event. Returns its position, and whether its key was there before: then nothing is stored.

        Raises Exhausted where the disk is full.
        """
        position, existed = self._log.append(event, key)
        for watcher in () if existed else self._watchers:
            watcher.set()
        return position, existed

    def after(self, position: int) -> Iterator[pb.RunEvent]:
        """Events after a position, in order, with their positions."""
        for place, event in self._log.after(position):
            event.position = place
            yield event

    @property
    def last_position(self) -> int:
        """Position of the newest event; 0 for an empty log."""
        return self._log.last_position

    @property
    def watched(self) -> bool:
        """Whether somebody watches it now."""
        return bool(self._watchers)

    async def watch(self, position: int, over_in_s: Callable[[], float | None]) -> AsyncGenerator[pb.RunEvent, None]:
        """Events after `position`, then live ones, until the run is over.

        `over_in_s`: asked when all there is was sent: seconds to wait for more before the
        run counts as over; None is for ever, 0 is at once.
        """
        woken = asyncio.Event()
        self._watchers.add(woken)
        try:
            while True:
                woken.clear()
                for event in self.after(position):
                    position = event.position
                    yield event
                if not woken.is_set() and not await _wait(woken, over_in_s()):
                    return
        finally:
            self._watchers.discard(woken)

    def close(self) -> None:
        self._log.close()


def log_path(folder: Path, run_id: str) -> Path:
    """Where a run's log is. Raises InvalidRequest for a run id that is none."""
    if not _RUN.fullmatch(run_id):
        raise InvalidRequest(
            f"run id {run_id!r} does not match {_RUN.pattern}", {"run_id": f"must match {_RUN.pattern}"}
        )
    return folder / f"{run_id}.sqlite"


async def _wait(woken: asyncio.Event, timeout_s: float | None) -> bool:
    """Whether it was woken within the time."""
    try:
        await asyncio.wait_for(woken.wait(), timeout_s)
    except TimeoutError:
        return False
    return True
