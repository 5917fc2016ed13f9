"""Opening the library's database: driver, durability, transactions, and what its failures mean.

SQLite: WAL, synchronous=FULL (a commit is on disk when it returns), one writer at a time by
BEGIN IMMEDIATE, which waits `busy_timeout_ms` for another process. PostgreSQL: the same
order of writers by a lock on the one row of `meta`, taken by store.py.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from esper.errors import Corrupt, EsperError, Exhausted, InvalidConfig, Unavailable

SYNCHRONOUS = ("FULL", "EXTRA", "NORMAL", "OFF")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How the database is opened; SQLite only, PostgreSQL keeps its own settings."""

    # How long a writer waits for another process before it is refused.
    busy_timeout_ms: int = 10_000
    # FULL: no acknowledged write is lost with the machine's power. OFF is for tests.
    synchronous: str = "FULL"


def open_engine(url: str, options: StoreOptions) -> AsyncEngine:
    """Raises InvalidConfig (URL or option) and Unavailable (the driver is not installed)."""
    target = _target(url)
    if options.synchronous not in SYNCHRONOUS:
        raise InvalidConfig(f"synchronous is {options.synchronous!r}, one of {', '.join(SYNCHRONOUS)}")
    try:
        engine = create_async_engine(target)
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"library database {_shown(target)}: the driver {error.name} is not installed; "
            "pip install 'psycopg[binary]', or use sqlite+aiosqlite:///PATH"
        ) from error
    if engine.dialect.name == "sqlite":
        _configure_sqlite(engine, options)
    return engine


def probe(engine: AsyncEngine) -> None:
    """Open a SQLite file once, blocking, to see that it can be: raises Unavailable and Corrupt.

    The asynchronous driver leaves a thread behind when it cannot open a file.
    """
    if engine.dialect.name != "sqlite":
        return
    try:
        with closing(sqlite3.connect(str(engine.url.database))) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        meaning = _sqlite_meaning(error.sqlite_errorname, error, _shown(engine.url))
        if meaning is None:
            raise
        raise meaning from error


def reading(engine: AsyncEngine) -> AsyncEngine:
    """The engine for transactions that see one state of the store throughout."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ")


def writing(engine: AsyncEngine) -> AsyncEngine:
    """The engine for transactions that write."""
    return engine.execution_options(esper_writes=True)


@contextmanager
def reporting(engine: AsyncEngine) -> Iterator[None]:
    """Turn a database failure somebody can act on into an EsperError; others pass as they are."""
    try:
        yield
    except DBAPIError as error:
        meaning = _meaning(error, _shown(engine.url))
        if meaning is None:
            raise
        raise meaning from error
    except PoolTimeoutError as error:
        raise Exhausted(f"{_shown(engine.url)}: every connection is busy ({error}); ask again, or ask less") from error


def _target(url: str) -> URL:
    try:
        target = make_url(url)
    except ArgumentError as error:
        raise InvalidConfig(f"library database {url!r} is not a URL; take sqlite+aiosqlite:///PATH") from error
    if target.drivername in ("postgresql", "postgres"):
        target = target.set(drivername="postgresql+psycopg")
    if target.drivername not in ("sqlite+aiosqlite", "postgresql+psycopg"):
        raise InvalidConfig(
            f"library database {_shown(target)}: no support for {target.drivername}; "
            "take sqlite+aiosqlite:///PATH or postgresql://HOST/NAME"
        )
    if target.drivername == "sqlite+aiosqlite" and target.database in (None, "", ":memory:"):
        raise InvalidConfig("library database: SQLite in memory keeps nothing; name a file, sqlite+aiosqlite:///PATH")
    return target


def _configure_sqlite(engine: AsyncEngine, options: StoreOptions) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: DBAPIConnection, _record: object) -> None:
        # The driver's own transaction handling would start writers as readers; "begin" below starts them right.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={options.busy_timeout_ms}",
            "journal_mode=WAL",
            f"synchronous={options.synchronous}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        writes = connection.get_execution_options().get("esper_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _meaning(error: DBAPIError, database: str) -> EsperError | None:
    """By SQLite's error name or PostgreSQL's SQLSTATE; None for what only a bug can cause."""
    cause = error.orig
    state = str(getattr(cause, "sqlstate", "") or "")
    if name := getattr(cause, "sqlite_errorname", ""):
        return _sqlite_meaning(name, cause, database)
    if state == "53100":
        return _full(database, cause)
    away = not state and type(cause).__name__ in _AWAY
    if away or error.connection_invalidated or state.startswith(("08", "57P", "53", "40")):
        return Unavailable(f"{database}: the server did not answer ({cause}); check that it runs, then retry")
    return None


def _sqlite_meaning(name: str, cause: object, database: str) -> EsperError | None:
    if name == "SQLITE_FULL":
        return _full(database, cause)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Unavailable(f"{database}: another process holds it for writing ({cause}); retry, or stop that process")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return Corrupt(f"{database}: not a sound SQLite database ({cause}); restore it from a backup")
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return Unavailable(f"{database}: cannot be read or written ({cause}); check the path, its permissions and disk")
    return None


def _full(database: str, cause: object) -> Exhausted:
    return Exhausted(f"{database}: no room to write ({cause}); free space on its disk and retry")


# What psycopg raises, without a SQLSTATE, when there is nobody to talk to.
_AWAY = frozenset({"ConnectionTimeout", "OperationalError"})


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=True)
