"""Wake another thread's event loop and keep the interpreter meanwhile.

`loop.call_soon_threadsafe` writes to a socket, and Python's `send` lets go of the interpreter's
lock around it: the woken thread takes it at once and may keep it for a whole switch interval,
inside a training step that only wanted to say something. Here the write is made through
`ctypes.PyDLL`, which keeps the lock; the other thread gets its turn at the caller's next pause,
which in training is the next tensor operation.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable

_write = ctypes.PyDLL(None).write


class Waker:
    """A pipe from any thread to one loop. Made and closed by the thread that wakes."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._open = True

    def listen(self, loop: asyncio.AbstractEventLoop, woken: Callable[[], None]) -> None:
        """On the loop's thread: call `woken` there once for any number of wakes since the last call."""

        def drain() -> None:
            os.read(self._reading, 4096)
            woken()

        loop.add_reader(self._reading, drain)

    def wake(self) -> None:
        """Never blocks: where the pipe is full, the loop has enough to wake for."""
        if self._open:
            _write(self._writing, b"\1", 1)

    def close(self) -> None:
        """After the loop has ended. Later wakes do nothing."""
        if self._open:
            self._open = False
            os.close(self._reading)
            os.close(self._writing)
