"""Writing into a run's directory: whole or not at all where it can be, and errors that say what to do."""

import contextlib
import errno
import os
import threading
from pathlib import Path

from esper.errors import EsperError, Exhausted, PreconditionFailed

# Two threads may write the same report, by the same way.
_replacing = threading.Lock()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def append_text(path: Path, text: str) -> None:
    """Add `text` at the end. It may be there in part when this raises Exhausted or PreconditionFailed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(text.encode())
    except OSError as error:
        raise write_error(path, error) from error


def replace_text(path: Path, text: str) -> None:
    """`replace_bytes` of the text in UTF-8."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, data: bytes) -> None:
    """Make `data` what the file holds, at once; a process killed in between leaves it as it was.

    Raises Exhausted, PreconditionFailed.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing:
            with fresh.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what is reported is why it could not be written
            fresh.unlink()
        raise write_error(path, error) from error


def read_text(path: Path) -> str | None:
    """What the file says; None where there is none that can be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def write_error(path: Path, error: OSError) -> EsperError:
    """Exhausted for a full disk or quota; PreconditionFailed for a place that cannot be written."""
    if error.errno in _FULL:
        return Exhausted(f"{path} cannot be written: {error.strerror}; free some disk space")
    return PreconditionFailed(f"{path} cannot be written: {error.strerror or error}; make its directory writable")
