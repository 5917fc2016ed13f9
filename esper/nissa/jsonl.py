"""events.jsonl: one JSON object a line, one line per event, line n for position n.

That is how a restarted worker knows what was written: it compares the file with the log,
line by line, and goes on behind the last line that is right. docs/observability.md has
the kinds and their fields.
"""

import json
import logging
import os
from pathlib import Path

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.nissa.events import EventLog
from esper.nissa.fields import fields_of
from esper.nissa.files import append_text, write_error

log = logging.getLogger(__name__)

_CHUNK_LINES = 500


# Characters that JSON allows inside a string and some readers take for the end of a line.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def line_of(event: pb.RunEvent) -> str:
    """The event's line, newline included. Numbers that are not finite are null."""
    return json.dumps(fields_of(event), ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS) + "\n"


class JsonLines:
    """One run's file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0  # position of the last line
        self._size_bytes: int | None = None  # of the file as we left it; None: it must be looked at

    def bring_up_to_date(self, events: EventLog) -> None:
        """Append what the log has and the file has not. Raises Exhausted, PreconditionFailed; then call again."""
        if self._size_bytes is None or self._size_bytes != _size(self.path):
            self._look(events)
        chunk: list[str] = []
        for event in events.after(self._written):
            chunk.append(line_of(event))
            if len(chunk) == _CHUNK_LINES:
                self._append(chunk)
                chunk = []
        self._append(chunk)

    def _append(self, lines: list[str]) -> None:
        size_bytes, self._size_bytes = self._size_bytes, None  # in case it stops half-way
        assert size_bytes is not None
        if lines:
            text = "".join(lines)
            append_text(self.path, text)
            self._written += len(lines)
            size_bytes += len(text.encode())
        self._size_bytes = size_bytes

    def _look(self, events: EventLog) -> None:
        """Find the last right line. Half a line behind it is cut off; a file that says other things is set aside."""
        try:
            lines, size_bytes, rest = _compare(self.path, events)
            if rest == "torn":
                os.truncate(self.path, size_bytes)
            elif rest == "other":
                self._set_aside()
                lines, size_bytes = 0, 0
        except OSError as error:
            raise write_error(self.path, error) from error
        self._written, self._size_bytes = lines, size_bytes

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"events.{number}.jsonl")).exists():
            number += 1
        self.path.rename(aside)
        log.warning("%s does not agree with the run's log; it was renamed to %s", self.path, aside.name)


def _compare(path: Path, events: EventLog) -> tuple[int, int, str]:
    """Lines and bytes that are right, and what follows them: "" nothing, "torn" half a line, "other" something else."""
    lines = size_bytes = 0
    if not path.exists():
        return 0, 0, ""
    with path.open("rb") as stream:
        for event in events.after(0):
            wanted, found = line_of(event).encode(), stream.readline()
            if found != wanted:
                torn = found and wanted.startswith(found)
                return lines, size_bytes, "torn" if torn else "other" if found else ""
            lines, size_bytes = lines + 1, size_bytes + len(wanted)
        return lines, size_bytes, "other" if stream.read(1) else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
