"""A run's line with nobody at its other end: the training side of Esper alone.

As the courier does, it works off what is posted on a thread of its own; what that makes is dropped.
"""

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

from esper.blueprint.interface import Interface
from esper.errors import Unavailable
from esper.kasmina.lifecycle import SeedId
from esper.tolaria.line import Incoming, Message


class SilentLine:
    """A tolaria Line. Nothing ever arrives on it."""

    def __init__(self) -> None:
        self._posted: SimpleQueue[Message | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="silent-line", daemon=True)
        self._thread.start()

    def post(self, make: Message) -> None:
        self._posted.put(make)

    def together(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def load_kernel(self, seed: SeedId, artifact_id: str, interface: Interface) -> None:
        raise Unavailable(f"kernel {artifact_id} for {seed}: nobody is at the other end of this line")

    def collect(self) -> list[Incoming]:
        return []

    def wait(self, done: Callable[[], bool], limit_s: float = 600.0) -> None:
        raise Unavailable("an answer is waited for, and nobody is at the other end of this line")

    def close(self, timeout_s: float = 10.0) -> None:
        self._posted.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (make := self._posted.get()) is not None:
            make()
