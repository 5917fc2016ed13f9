"""An append-only log of protobuf messages in one SQLite file.

Components keep what they must show later in one of these: decisions, experiences,
findings, audit entries, events. A message has a key, and the same key is stored once;
some of its values are columns to filter by. A process that is killed loses nothing
that `append` returned for.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from esper.errors import Corrupt, EsperError, Exhausted, PreconditionFailed, Unavailable

M = TypeVar("M", bound=Message)
Value = str | int | float | None

_VERSION = 1


class RecordLog(Generic[M]):
    """One log. Used from one thread; any number of processes may read the file.

    `key`: what makes a message one; None where every `append` names its own. `sync_always`:
    each append is synced to disk, so that it outlives a loss of power too.

    Raises Exhausted where the disk is full, PreconditionFailed where the file cannot be
    written or is not such a log, Corrupt where it is damaged, Unavailable where another
    process holds it for longer than 5 s.
    """

    def __init__(
        self,
        path: Path,
        message_type: type[M],
        key: Callable[[M], str] | None,
        columns: Mapping[str, Callable[[M], Value]] | None = None,
        *,
        sync_always: bool = False,
    ) -> None:
        self.path = path
        self.message_type = message_type
        self.key = key
        self.columns = dict(columns or {})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._set_up("FULL" if sync_always else "NORMAL")
        except OSError as error:
            raise PreconditionFailed(f"{path} cannot be made ({error}); choose a writable directory") from error
        except sqlite3.DatabaseError as error:
            raise _ours(path, error) from error

    def append(self, message: M, key: str | None = None) -> tuple[int, bool]:
        """Store a message. Returns its position, from 1, and whether its key was there before: then nothing is stored.

        `key`: instead of the log's own.
        """
        if key is None:
            assert self.key is not None, "a log without a key function is told the key"
            key = self.key(message)
        values = [key, message.SerializeToString(), *(read(message) for read in self.columns.values())]
        names = ", ".join(["key", "body", *self.columns])
        marks = ", ".join("?" * len(values))
        try:
            cursor = self._db.execute(f"INSERT OR IGNORE INTO records ({names}) VALUES ({marks})", values)
            if cursor.rowcount:
                assert cursor.lastrowid is not None
                return cursor.lastrowid, False
            (position,) = self._db.execute("SELECT position FROM records WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise _ours(self.path, error) from error
        return position, True

    def get(self, key: str) -> M | None:
        """The message of a key."""
        row = self._db.execute("SELECT position, body FROM records WHERE key = ?", (key,)).fetchone()
        return self._parse(*row) if row else None

    def list(
        self,
        where: Mapping[str, Value | Sequence[Value]] | None = None,
        *,
        after: int = 0,
        before: int = 0,
        limit: int = 100,
        newest_first: bool = False,
    ) -> list[tuple[int, M]]:
        """Up to `limit` messages with their positions: `after` < position, and position < `before` where it is set.

        `where` names columns and the value, or the values, wanted.
        """
        terms, values = ["position > ?"], [after]
        if before:
            terms.append("position < ?")
            values.append(before)
        for name, wanted in (where or {}).items():
            many = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
            terms.append(f"{self._known(name)} IN ({', '.join('?' * len(many))})")
            values.extend(many)  # type: ignore[arg-type]
        order = "DESC" if newest_first else "ASC"
        query = f"SELECT position, body FROM records WHERE {' AND '.join(terms)} ORDER BY position {order} LIMIT ?"
        rows = self._db.execute(query, (*values, limit)).fetchall()
        return [(position, self._parse(position, body)) for position, body in rows]

    def all(self, where: Mapping[str, Value | Sequence[Value]] | None = None) -> Iterator[M]:
        """Every message that fits, oldest first, read in pages."""
        return (message for _, message in self.after(0, where))

    def after(
        self, position: int, where: Mapping[str, Value | Sequence[Value]] | None = None
    ) -> Iterator[tuple[int, M]]:
        """Every message after `position` that fits, with its own, oldest first, read in pages."""
        while page := self.list(where, after=position, limit=500):
            yield from page
            position = page[-1][0]

    def __contains__(self, key: str) -> bool:
        """Whether a message of this key is stored."""
        return self._db.execute("SELECT 1 FROM records WHERE key = ?", (key,)).fetchone() is not None

    def raw(self, position: int = 0) -> Iterator[tuple[int, bytes]]:
        """Every position after `position` and the bytes that are stored there, whatever they are, oldest first."""
        query = "SELECT position, body FROM records WHERE position > ? ORDER BY position LIMIT 500"
        while page := self._db.execute(query, (position,)).fetchall():
            yield from page
            position = page[-1][0]

    @property
    def last_position(self) -> int:
        """Position of the newest message; 0 for an empty log."""
        (position,) = self._db.execute("SELECT COALESCE(MAX(position), 0) FROM records").fetchone()
        return int(position)

    def close(self) -> None:
        self._db.close()

    def _set_up(self, synchronous: str) -> None:
        try:
            self._db.execute("PRAGMA busy_timeout=5000")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={synchronous}")
            self._check_version()
            declared = ", ".join(["position INTEGER PRIMARY KEY", "key TEXT UNIQUE", "body BLOB", *self.columns])
            self._db.execute(f"CREATE TABLE IF NOT EXISTS records ({declared})")
            self._check_columns()
            for name in self.columns:
                self._db.execute(f"CREATE INDEX IF NOT EXISTS by_{name} ON records ({name}, position)")
        except BaseException:
            self._db.close()
            raise

    def _parse(self, position: int, body: bytes) -> M:
        try:
            return self.message_type.FromString(body)
        except (DecodeError, TypeError) as error:
            kind = self.message_type.DESCRIPTOR.name
            raise Corrupt(f"{self.path}: what is stored at position {position} is no {kind}") from error

    def _known(self, name: str) -> str:
        if name not in self.columns:
            raise PreconditionFailed(f"{self.path.name} has no column {name!r}; it has {', '.join(self.columns)}")
        return name

    def _check_version(self) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found not in (0, _VERSION):
            raise PreconditionFailed(
                f"{self.path} is of version {found}, this release reads {_VERSION}; use the release that wrote it"
            )
        if not found:
            self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _check_columns(self) -> None:
        there = {row[1] for row in self._db.execute("PRAGMA table_info(records)")}
        if missing := [name for name in self.columns if name not in there]:
            raise PreconditionFailed(
                f"{self.path} was made without the columns {', '.join(missing)}; use the release that wrote it"
            )


def _ours(path: Path, error: sqlite3.DatabaseError) -> EsperError:
    """What went wrong with the file, told apart by SQLite's result code."""
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return Exhausted(f"{path} cannot be written ({error}); free some disk space")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(f"{path} is held by another process ({error}); stop the one that writes it")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Corrupt(f"{path} is damaged ({error}); put it aside and begin again, or restore a copy")
    if primary == sqlite3.SQLITE_IOERR:
        return Exhausted(f"{path} cannot be read or written ({error}); look at the disk and the room on it")
    return PreconditionFailed(f"{path} cannot be used ({error}); make it and its directory writable")
