"""A pool of single-use worker processes, forked ahead of time from a warm one.

Each job gets a process that has imported torch and nothing else's state. Workers run at
the lowest priority with one thread, each in a folder of its own. A worker that dies, or is
still at work at its deadline or when its caller goes away, costs its own job only; what it
started ends with it, and its folder is removed. A warm process that dies takes its workers with it and
is started again.
"""

import asyncio
import contextlib
import heapq
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper.errors import DeadlineExceeded, Exhausted, KernelFault, Unavailable
from esper.runtime.warm import DONE, FAILED, PARTIAL, folder_of

log = logging.getLogger(__name__)

# Starts of the warm process that fail one after the other before the pool is given up.
MAX_FAILED_STARTS = 3
_HEADER_BYTES = 5


@dataclass(order=True)
class _Waiting:
    """A job in the queue; higher priority first, then first come."""

    rank: tuple[int, int]
    kind: str = field(compare=False)
    payload: bytes = field(compare=False)
    long: bool = field(compare=False)
    timeout_s: float = field(compare=False)
    on_partial: Callable[[bytes], None] = field(compare=False)
    answer: asyncio.Future[bytes] = field(compare=False)
    at_work: asyncio.Task[Any] | None = field(compare=False, default=None)  # from when a worker has the job


@dataclass
class _Child:
    pid: int
    generation: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Pool:
    """`size` jobs at a time, of kinds named `{kind: "module:function"}`; see warm.py for the functions.

    Of more than one place, one is kept for jobs that are not `long`, so that a short
    question never waits for a long one.
    """

    def __init__(
        self,
        name: str,
        kinds: Mapping[str, str],
        *,
        size: int,
        spare: int = 1,
        max_queued: int = 10_000,
        log: Path | None = None,
    ) -> None:
        self.name = name
        self.kinds = dict(kinds)
        self.size = size
        self.spare = spare
        self.max_queued = max_queued
        self.log = log
        self.busy = 0
        self._busy_long = 0
        self._generation = 0
        self._queue: list[_Waiting] = []
        self._order = itertools.count()
        self._idle: asyncio.Queue[_Child | None] = asyncio.Queue()  # None: nobody comes any more
        self._tasks: set[asyncio.Task[None]] = set()
        self._folder = Path()
        self._preloads: list[tuple[str, object]] = []
        self._warm: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._failed_starts = 0
        self._stopped = False
        self._lost: Unavailable | None = None
        self._server: asyncio.Server | None = None

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def start(self) -> None:
        """Start the warm process and its first children; jobs may be given at once."""
        self._folder = Path(tempfile.mkdtemp(prefix=f"esper-{self.name}-"))
        self._server = await asyncio.start_unix_server(self._connected, path=self._folder / "socket")
        await self._start_warm()
        self._keeper = asyncio.create_task(self._keep_warm(), name=f"{self.name}-keeper")

    async def stop(self) -> None:
        """End everything; queued and running jobs fail with Unavailable."""
        self._stopped = True
        self._fail_queued(Unavailable(f"the {self.name} pool is stopping"))
        for task in [self._keeper, *self._tasks]:
            if task is not None:
                task.cancel()
        if self._warm is not None and self._warm.returncode is None:
            self._warm.kill()
            await self._warm.wait()
        if self._server is not None:
            self._server.close()
        while not self._idle.empty():
            if (child := self._idle.get_nowait()) is not None:
                child.writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def preload(self, target: str, argument: object) -> None:
        """Have the warm process call `module:function` with a JSON argument, for children forked later."""
        self._preloads.append((target, argument))
        await self._command({"preload": [target, argument]})
        self._generation += 1  # children forked before the preload are not used any more
        await self._fork(self.size + self.spare)

    async def run(
        self,
        kind: str,
        payload: bytes,
        timeout_s: float,
        *,
        priority: int = 0,
        long: bool = False,
        on_partial: Callable[[bytes], None] = lambda _: None,
    ) -> bytes:
        """Do one job in a process of its own and return its reply. Cancelled, it ends the worker, or never begins.

        Raises Exhausted where the queue is full, DeadlineExceeded when the worker was still at
        work after `timeout_s`, Unavailable when it died or none can be started, KernelFault when the job raised.
        """
        if self._lost is not None:
            raise self._lost
        if len(self._queue) >= self.max_queued:
            raise Exhausted(f"the {self.name} queue holds {len(self._queue)} jobs, the limit; try again later")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        rank = (-priority, next(self._order))
        waiting = _Waiting(rank, kind, payload, long, timeout_s, on_partial, answer)
        heapq.heappush(self._queue, waiting)
        self._dispatch()
        try:
            return await answer
        except asyncio.CancelledError:
            if waiting.at_work is not None:
                waiting.at_work.cancel()
            raise

    def _dispatch(self) -> None:
        """Start what may start: best first, long jobs never in the last place of several."""
        held = []
        while self._queue and self.busy < self.size:
            waiting = heapq.heappop(self._queue)
            if waiting.answer.done():  # its caller has gone away
                continue
            if waiting.long and self._busy_long >= max(1, self.size - 1):
                held.append(waiting)
                continue
            self.busy += 1
            self._busy_long += waiting.long
            task = asyncio.create_task(self._do(waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for waiting in held:
            heapq.heappush(self._queue, waiting)

    async def _do(self, waiting: _Waiting) -> None:
        child: _Child | None = None
        try:
            child = await self._take_child()
            if waiting.answer.done():  # its caller has gone away
                return
            waiting.at_work = asyncio.current_task()
            async with asyncio.timeout(waiting.timeout_s):
                _settle(waiting.answer, await self._converse(child, waiting))
        except TimeoutError:
            _settle(
                waiting.answer,
                error=DeadlineExceeded(
                    f"a {waiting.kind} job was still at work after {waiting.timeout_s:g} s; its worker was ended"
                ),
            )
        except (EOFError, ConnectionError, asyncio.IncompleteReadError):
            _settle(
                waiting.answer, error=Unavailable(f"the worker of a {waiting.kind} job died; the job may be sent again")
            )
        except (KernelFault, Unavailable) as error:
            _settle(waiting.answer, error=error)
        except asyncio.CancelledError:
            _settle(waiting.answer, error=Unavailable(f"the {self.name} pool is stopping"))
            raise
        finally:
            if child is not None:
                self._end(child)
            self.busy -= 1
            self._busy_long -= waiting.long
            self._dispatch()

    async def _converse(self, child: _Child, waiting: _Waiting) -> bytes:
        for body in (waiting.kind.encode(), waiting.payload):
            child.writer.write(DONE + len(body).to_bytes(4, "big") + body)
        await child.writer.drain()
        while True:
            kind, body = await _frame(child.reader)
            if kind == PARTIAL:
                waiting.on_partial(body)
            elif kind == FAILED:
                raise KernelFault(body.decode())
            else:
                return body

    async def _take_child(self) -> _Child:
        """An idle child, with another one ordered in its place."""
        await self._fork(1)
        while True:
            child = await self._idle.get()
            if child is None:
                assert self._lost is not None
                raise self._lost
            if child.generation == self._generation and not child.writer.is_closing() and not child.reader.at_eof():
                return child
            child.writer.close()

    def _end(self, child: _Child) -> None:
        """Single use: whatever it and its children are doing, it is over."""
        child.writer.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the second: macOS, where all have ended
            os.killpg(child.pid, signal.SIGKILL)
        shutil.rmtree(folder_of(self._folder, child.pid), ignore_errors=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # cancelled: the loop ends while a child is still saying hello
        try:
            _, hello = await _frame(reader)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()
            return
        if self._stopped:
            writer.close()
            return
        pid, generation = map(int, hello.split())
        self._idle.put_nowait(_Child(pid, generation, reader, writer))
        self._failed_starts = 0

    async def _start_warm(self) -> None:
        kinds = [f"{name}={target}" for name, target in self.kinds.items()]
        errors = self.log.open("ab") if self.log else None
        self._warm = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "esper.runtime.warm",
            str(self._folder / "socket"),
            *kinds,
            stdin=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        if errors:
            errors.close()
        self._generation += 1
        for preload in self._preloads:
            await self._command({"preload": preload})
        await self._fork(self.size + self.spare)

    async def _keep_warm(self) -> None:
        """Start the warm process again whenever it ends; its workers have ended with it."""
        backoff_s = 0.1
        while True:
            assert self._warm is not None
            status = await self._warm.wait()
            self._failed_starts += 1
            if self._failed_starts > MAX_FAILED_STARTS:
                return self._give_up(status)
            log.warning("the %s pool's warm process ended with %d; it is started again", self.name, status)
            await asyncio.sleep(backoff_s * (self._failed_starts - 1))
            await self._start_warm()

    def _give_up(self, status: int) -> None:
        where = f"; its log is {self.log}" if self.log else ""
        self._lost = Unavailable(
            f"the {self.name} pool's warm process ends with {status} whenever it is started{where}; "
            "mend that and restart the runtime"
        )
        self._fail_queued(self._lost)
        for _ in range(self.size):
            self._idle.put_nowait(None)

    def _fail_queued(self, error: Unavailable) -> None:
        for waiting in self._queue:
            _settle(waiting.answer, error=error)
        self._queue.clear()

    async def _fork(self, count: int) -> None:
        await self._command({"fork": count, "generation": self._generation})

    async def _command(self, command: dict[str, object]) -> None:
        """Tell the warm process. One that has just ended does not hear it: the next one forks a full set of workers."""
        assert self._warm is not None
        assert self._warm.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._warm.stdin.write(json.dumps(command).encode() + b"\n")
            await self._warm.stdin.drain()


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    header = await reader.readexactly(_HEADER_BYTES)
    return header[:1], await reader.readexactly(int.from_bytes(header[1:], "big"))


def _settle(answer: asyncio.Future[bytes], value: bytes = b"", *, error: Exception | None = None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(value)
    else:
        answer.set_exception(error)
