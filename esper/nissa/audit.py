"""The audit trail: who did what to which run, in a chain that shows every later change.

Entries are in one SQLite file, the newest one's digest in `<file>.head` beside it. Whoever
can rewrite both can forge the trail: keep the head somewhere else if that matters.
"""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.errors import Corrupt
from esper.nissa.chain import Head, Verified, chained, follows, verify
from esper.nissa.files import replace_text
from esper.records import RecordLog


class AuditTrail:
    """Used from one thread, written by one process."""

    def __init__(self, path: Path) -> None:
        """Raises Corrupt for a damaged file, PreconditionFailed for one that cannot be written."""
        # Synced, as the head beside it is: after a loss of power a head without its entry would look like forgery.
        self._log = RecordLog(path, pb.AuditEntry, None, {"run_id": lambda entry: entry.run_id}, sync_always=True)
        self._head_path = path.with_name(path.name + ".head")
        self._kept = _read_head(self._head_path)
        self._take_last_step()

    def append(self, key: str, entry: pb.AuditEntry) -> bool:
        """Add one entry; its position and digest are set here. False: the trail has an entry of this key.

        Raises Exhausted where the disk is full; then nothing was added.
        """
        if key in self._log:
            return False
        self._take_last_step()
        # Behind what is there, even where that was tampered with: the chain stays broken where it was broken.
        following = chained(Head(self._log.last_position, self._kept.digest), entry)
        self._log.append(following, key)
        self._keep(Head(following.position, following.digest))
        return True

    def get(self, key: str) -> pb.AuditEntry | None:
        """The entry of a key."""
        return self._log.get(key)

    def list(self, *, run_id: str = "", after: int = 0, limit: int = 100) -> Sequence[pb.AuditEntry]:
        """Up to `limit` entries after a position, oldest first; of one run, or of all where it is empty."""
        rows = self._log.list({"run_id": run_id} if run_id else None, after=after, limit=limit)
        return [entry for _, entry in rows]

    def verify(self) -> Verified:
        """Recompute the whole chain."""
        try:
            return verify(self._log.raw(), self._kept)
        except sqlite3.DatabaseError as error:
            raise Corrupt(f"{self._log.path} cannot be read ({error}); restore a copy of it") from error

    @property
    def last_position(self) -> int:
        """Position of the newest entry; 0 for an empty trail."""
        return self._log.last_position

    def close(self) -> None:
        self._log.close()

    def _take_last_step(self) -> None:
        """What stops between an entry and the head leaves the head one behind, and no more than one."""
        if self._log.last_position != self._kept.position + 1:
            return
        for position, body in self._log.raw(self._kept.position):
            if (head := follows(self._kept, position, body)) is not None:
                self._keep(head)

    def _keep(self, head: Head) -> None:
        replace_text(self._head_path, json.dumps({"position": head.position, "digest": head.digest}) + "\n")
        self._kept = head


def _read_head(path: Path) -> Head:
    """A head that is gone or does not parse is that of an empty trail: whatever the trail holds is then unproven."""
    try:
        fields = json.loads(path.read_text())
        return Head(int(fields["position"]), str(fields["digest"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Head()
