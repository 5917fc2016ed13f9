"""Keep from the screen what torch prints of a forward that it cannot trace: the whole graph, and warnings."""

import contextlib
import io
import logging
import sys
import threading
from collections.abc import Iterator
from typing import TextIO


class _OthersOnly(io.TextIOBase):
    """A stream that drops what one thread writes."""

    def __init__(self, stream: TextIO, thread: int) -> None:
        self._stream, self._thread = stream, thread

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what this thread prints on standard error, or logs by torch's loggers, is shown."""
    here = threading.get_ident()

    def is_from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    loggers = [
        logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.split(".")[0] == "torch"
    ]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    for handler in handlers:
        handler.addFilter(is_from_elsewhere)
    try:
        with contextlib.redirect_stderr(_OthersOnly(sys.stderr, here)):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_from_elsewhere)
