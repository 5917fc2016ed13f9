"""Telemetry on its way out: bounded, batched, never waited for.

`offer` returns at once. One task sends what has gathered, a batch at a time, so a batch
grows by itself while the one before it is on its way, and order is kept. When the buffer
is full the oldest envelope is dropped, and counted.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType

from esper import errors
from esper.oona.envelope import check
from esper.oona.port import MAX_BATCH, Bus, Envelope
from esper.oona.subjects import find

log = logging.getLogger(__name__)

_Key = tuple[str, str, int | None]  # name, run, rank


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Bounds of one buffer.

    `capacity`, `capacity_bytes`: what waits at most. `batch`, `batch_bytes`: what one bus
    message holds at most. `linger_s`: how long the first envelope waits for others.
    """

    capacity: int = 8192
    capacity_bytes: int = 64 * 1024 * 1024
    batch: int = 256
    batch_bytes: int = 512 * 1024
    linger_s: float = 0.002
    retry_s: float = 0.2


@dataclass
class _Queue:
    """Envelopes of one key with their place in the order of offers."""

    waiting: deque[tuple[int, Envelope]] = field(default_factory=deque)


class TelemetryBuffer:
    """Batches envelopes of telemetry names onto a bus. Use as an async context manager."""

    def __init__(self, bus: Bus, options: BatchOptions = BatchOptions()) -> None:  # noqa: B008  frozen
        if not 1 <= options.batch <= MAX_BATCH:
            raise errors.InvalidConfig(f"batch {options.batch} is not in 1 to {MAX_BATCH}")
        self._bus = bus
        self._options = options
        self._queues: dict[_Key, _Queue] = {}
        self._number = 0
        self._size_bytes = 0
        self._pending = 0
        self._in_flight = 0
        self._some = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        self.published = 0

    @property
    def pending(self) -> int:
        """Envelopes not stored yet, those on their way included."""
        return self._pending + self._in_flight

    async def __aenter__(self) -> "TelemetryBuffer":
        self._task = asyncio.create_task(self._run(), name="telemetry buffer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def offer(self, name: str, envelope: Envelope, *, rank: int | None = None) -> None:
        """Take `envelope` over. Only from the event loop's thread.

        Raises InvalidRequest for a name that is not telemetry or an incomplete envelope,
        Exhausted for one that fits in no message.
        """
        if not find(name).batched:
            raise errors.InvalidRequest(f"{name} may not be dropped, so it is not buffered; publish it")
        check(name, envelope)
        size_bytes, room = envelope.ByteSize(), self._bus.max_envelope_bytes - 16
        if size_bytes > room:
            raise errors.Exhausted(f"envelope {envelope.id!r} on {name}: {size_bytes} bytes, at most {room} fit")
        self._number += 1
        self._pending += 1
        self._size_bytes += size_bytes
        queue = self._queues.setdefault((name, envelope.run_id, rank), _Queue())
        queue.waiting.append((self._number, envelope))
        while self._pending > self._options.capacity or self._size_bytes > self._options.capacity_bytes:
            self._drop_oldest()
        self._idle.clear()
        self._some.set()

    async def flush(self, timeout_s: float) -> None:
        """Return when everything offered so far is stored. Raises DeadlineExceeded."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError as error:
            raise errors.DeadlineExceeded(f"{self.pending} envelopes are not stored after {timeout_s:g} s") from error

    async def close(self, timeout_s: float = 1.0) -> None:
        """Send what can be sent within `timeout_s`; the rest is counted as dropped."""
        if self._task is None:
            return
        try:
            await self.flush(timeout_s)
        except errors.DeadlineExceeded as error:
            log.warning("telemetry is dropped at close: %s", error)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        self.dropped += self.pending
        self._queues.clear()
        self._pending = self._in_flight = self._size_bytes = 0

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            if self._pending < self._options.batch:
                await asyncio.sleep(self._options.linger_s)
            while (key := self._oldest()) is not None:
                batch = self._take(key)
                self._in_flight = len(batch)
                await self._send(key, batch)
                self._in_flight = 0
            self._some.clear()
            self._idle.set()

    async def _send(self, key: _Key, batch: list[Envelope]) -> None:
        """Store `batch`, trying again while the broker is away: the same batch, so it is stored once."""
        name, _, rank = key
        said = ""
        while True:
            try:
                await self._bus.publish_batch(name, batch, rank=rank)
                self.published += len(batch)
                return
            except (errors.Unavailable, errors.DeadlineExceeded, errors.Exhausted) as error:
                if said != (said := str(error)):
                    log.warning("telemetry waits: %s", error)
                await asyncio.sleep(self._options.retry_s)
            except Exception:
                log.exception("%d envelopes of telemetry on %s are dropped", len(batch), name)
                self.dropped += len(batch)
                return

    def _take(self, key: _Key) -> list[Envelope]:
        waiting = self._queues[key].waiting
        batch: list[Envelope] = []
        room = min(self._options.batch_bytes, self._bus.max_envelope_bytes)
        while waiting and len(batch) < self._options.batch:
            size_bytes = waiting[0][1].ByteSize() + 8
            if batch and size_bytes > room:
                break
            room -= size_bytes
            batch.append(self._pop(key))
        return batch

    def _drop_oldest(self) -> None:
        key = self._oldest()
        assert key is not None
        self._pop(key)
        self.dropped += 1

    def _pop(self, key: _Key) -> Envelope:
        _, envelope = self._queues[key].waiting.popleft()
        self._pending -= 1
        self._size_bytes -= envelope.ByteSize()
        if not self._queues[key].waiting:
            del self._queues[key]
        return envelope

    def _oldest(self) -> _Key | None:
        return min(self._queues, key=lambda key: self._queues[key].waiting[0][0], default=None)
