"""The library's database: opened at one schema version, read and written in whole transactions.

Writers of one process queue for a lock of ours before they ask the database for its own:
SQLite lets waiting processes race, and a fair queue inside the process is free. A
transaction that has begun runs to its end even if its caller is cancelled, because a driver
call that is cut short leaves its connection, and SQLite's write lock with it, hanging. So a
cancelled write may have been made; its request id tells.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import insert, inspect, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from esper.errors import Corrupt, PreconditionFailed, Unavailable
from esper.urza import engine as engines
from esper.urza import schema
from esper.urza.engine import StoreOptions
from esper.urza.events import OutboxEvent
from esper.urza.ledger import GENESIS, Head, verify
from esper.urza.migrate import upgrade
from esper.urza.reader import Reader
from esper.urza.threads import in_thread
from esper.urza.writer import Writer

T = TypeVar("T")

_BATCH = 500
# Any number, the same in every process: whoever makes the tables on PostgreSQL holds it.
_CREATE_LOCK = 0x657370657275727A


class Store:
    """Open with `Store.open`; belongs to the event loop it was opened in."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._readers = engines.reading(engine)
        self._writers = engines.writing(engine)
        self._lock = asyncio.Lock()
        self._draining = asyncio.Lock()
        self._changed = asyncio.Event()
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    @classmethod
    async def open(cls, url: str, options: StoreOptions | None = None) -> "Store":
        """Open a database, making the tables in an empty one and bringing those of an earlier version up to today's.

        Raises InvalidConfig (URL), Unavailable (driver or server absent), Corrupt (not a database) and
        PreconditionFailed (tables of another schema version).
        """
        store = cls(engines.open_engine(url, options or StoreOptions()))
        try:
            await in_thread(engines.probe, store._engine)
            with engines.reporting(store._engine):
                async with store._writers.begin() as connection:
                    await _create_or_check(connection, store._engine)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """End every wait for changes, let transactions that run end, then close the connections."""
        self._closed = True
        self._wake()
        if self._running:
            await asyncio.wait(self._running)
        await self._engine.dispose()

    async def read(self, query: Callable[[Reader], Awaitable[T]]) -> T:
        """What `query` returns, asked of one state of the store. Raises Unavailable, Corrupt."""
        return await asyncio.shield(self._run(self._read(query)))

    async def write(self, change: Callable[[Writer], Awaitable[T]]) -> T:
        """Run `change` in one transaction that holds the write lock; undone if it raises.

        Raises Exhausted (disk full), Unavailable (another process holds the lock), Corrupt.
        """
        await self._lock.acquire()
        try:
            work = self._run(self._write(change))
        except Unavailable:
            self._lock.release()
            raise
        work.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(work)

    async def wait(self, after_revision: int, timeout_s: float) -> int:
        """Return the newest revision once it is past `after_revision`, or when the time is up.

        A change by another process is seen at the end of `timeout_s`. Raises Unavailable when the
        store is closed.
        """
        changed = self._changed
        newest = await self._newest()
        if newest > after_revision:
            return newest
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), timeout_s)
        return await self._newest()

    async def drain(self, publish: Callable[[OutboxEvent], Awaitable[None]]) -> int:
        """Hand every waiting event to `publish`, oldest first, and mark those it took; how many.

        At least once: an event whose mark was lost is handed out again, with the same id. What
        `publish` raises ends the drain and comes out, after the events before it were marked. One
        process may drain a library at a time if order matters to the bus.
        """
        taken = 0
        async with self._draining:
            while True:
                waiting = await self.read(lambda reader: reader.waiting_events(_BATCH))
                if not waiting:
                    return taken
                taken += await self._publish(waiting, publish)

    async def verify_ledger(self) -> Head:
        """Check the whole chain against the head. Raises Corrupt naming what is wrong."""
        return await self.read(_verify_ledger)

    async def _publish(self, events: list[OutboxEvent], publish: Callable[[OutboxEvent], Awaitable[None]]) -> int:
        done: list[int] = []
        try:
            for event in events:
                await publish(event)
                done.append(event.sequence)
        finally:
            if done:
                await self.write(lambda tx: tx.mark_published(done))
        return len(done)

    async def _newest(self) -> int:
        return (await self.read(lambda reader: reader.head())).revision

    def _run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        if self._closed:
            work.close()
            raise Unavailable("the library is closed; try again when it is served again")
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _read(self, query: Callable[[Reader], Awaitable[T]]) -> T:
        with engines.reporting(self._engine):
            async with self._readers.connect() as connection:
                return await query(Reader(connection))

    async def _write(self, change: Callable[[Writer], Awaitable[T]]) -> T:
        with engines.reporting(self._engine):
            async with self._writers.begin() as connection:
                answer = await change(Writer(connection, await _lock_head(connection)))
        self._wake()
        return answer

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _create_or_check(connection: AsyncConnection, engine: AsyncEngine) -> None:
    if engine.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATE_LOCK})
    if not await connection.run_sync(_has_tables):
        await connection.run_sync(schema.metadata.create_all)
        await connection.execute(
            insert(schema.meta).values(id=1, schema_version=schema.SCHEMA_VERSION, revision=0, digest=GENESIS)
        )
    version = (await connection.execute(select(schema.meta.c.schema_version))).scalar_one()
    if version != schema.SCHEMA_VERSION and not await connection.run_sync(upgrade, version):
        where = engine.url.render_as_string(hide_password=True)
        raise PreconditionFailed(
            f"{where}: the library's tables have schema version {version}, this Esper reads {schema.SCHEMA_VERSION}; "
            "run the Esper that wrote them, or give this one another database"
        )


def _has_tables(connection: Connection) -> bool:
    return inspect(connection).has_table(schema.meta.name)


async def _verify_ledger(reader: Reader) -> Head:
    head, seen = await reader.head(), Head()
    while entries := await reader.entries(seen.revision, _BATCH):
        seen = verify(entries, seen)
    if seen != head:
        raise Corrupt(f"ledger: it ends at revision {seen.revision}, the store is at {head.revision}")
    return head


async def _lock_head(connection: AsyncConnection) -> Head:
    """Take the lock PostgreSQL's writers queue for; SQLite's BEGIN IMMEDIATE has taken its own."""
    row = (await connection.execute(select(schema.meta.c.revision, schema.meta.c.digest).with_for_update())).one()
    return Head(row.revision, row.digest)
