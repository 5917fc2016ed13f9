"""Catch a thread at reaching outside its process: files, sockets, processes, sleep."""

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Self

# Events of Python's audit hooks that can make a thread wait for something outside.
OUTSIDE = ("open", "socket.", "subprocess.", "os.", "shutil.", "sqlite3.", "time.sleep", "fcntl.", "select.")
# These come with any step of torch: nothing is waited for.
HARMLESS = ("os.getxattr", "os.putenv", "os.unsetenv")


class Waits:
    """Counts what the calling thread does within `watching()`. A context manager; a hook cannot be taken out again."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._thread = threading.get_ident()
        self._watching = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._watching or threading.get_ident() != self._thread:
            return
        if event.startswith(OUTSIDE) and event not in HARMLESS:
            what = f"{event} {str(arguments[0])[:120]}" if arguments else event
            self.seen[what] += 1
