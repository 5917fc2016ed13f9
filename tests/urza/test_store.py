"""The database: how it is opened, what its failures mean, waiting for changes, the outbox."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from esper.errors import Corrupt, Exhausted, InvalidConfig, PreconditionFailed, Unavailable
from esper.urza import store as stores
from esper.urza.engine import StoreOptions
from esper.urza.events import Event, OutboxEvent
from esper.urza.store import Store
from esper.urza.writer import Writer

from .fakes import FAST


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "library.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(f"sqlite+aiosqlite:///{path}", FAST)
    yield opened
    await opened.close()


async def change(store: Store, *events: Event) -> int:
    async def write(tx: Writer) -> int:
        await tx.record_change(time_ns=1, action="a", resource_name="r", detail={}, events=events)
        return tx.revision

    return await store.write(write)


# ---- opening --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "is not a URL"),
        ("sqlite+aiosqlite://", "in memory keeps nothing"),
        ("sqlite+aiosqlite:///:memory:", "in memory keeps nothing"),
        ("mysql://host/db", "no support for mysql"),
        ("sqlite:///x.db", r"take sqlite\+aiosqlite"),
    ],
)
async def test_a_url_it_cannot_use_is_refused(url: str, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        await Store.open(url)


async def test_an_unknown_durability_is_refused(path: Path) -> None:
    with pytest.raises(InvalidConfig, match="'MAYBE', one of FULL"):
        await Store.open(f"sqlite+aiosqlite:///{path}", StoreOptions(synchronous="MAYBE"))


async def test_a_missing_driver_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(Unavailable, match=r"driver psycopg is not installed; pip install 'psycopg\[binary\]'"):
        await Store.open("postgresql://host/db")


async def test_it_is_durable_by_default(path: Path) -> None:
    store = await Store.open(f"sqlite+aiosqlite:///{path}")
    async with store._engine.connect() as connection:
        values = {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        }
    await store.close()
    full = 2
    assert values == {"journal_mode": "wal", "synchronous": full, "busy_timeout": 10_000}


async def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"this is a letter, not a database" * 200)
    with pytest.raises(Corrupt, match="not a sound SQLite database"):
        await Store.open(f"sqlite+aiosqlite:///{path}")


async def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="check the path"):
        await Store.open(f"sqlite+aiosqlite:///{tmp_path}/absent/library.db")


async def test_tables_of_another_version_are_refused(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.schema, "SCHEMA_VERSION", 7)
    with pytest.raises(PreconditionFailed, match="schema version 2, this Esper reads 7"):
        await Store.open(f"sqlite+aiosqlite:///{path}")


# ---- failures -------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_exhausted_and_nothing_is_half_written(store: Store) -> None:
    await change(store)
    async with store._engine.connect() as connection:
        pages = (await connection.execute(text("PRAGMA page_count"))).scalar()

    async def fill(tx: Writer) -> None:
        await tx._connection.execute(text(f"PRAGMA max_page_count={pages}"))
        await tx.record_change(time_ns=1, action="a", resource_name="r", detail={"big": "x" * 100_000})

    with pytest.raises(Exhausted, match="no room to write"):
        await store.write(fill)
    assert (await store.verify_ledger()).revision == 1


async def test_a_database_held_by_another_process_is_unavailable(path: Path) -> None:
    store = await Store.open(f"sqlite+aiosqlite:///{path}", StoreOptions(busy_timeout_ms=50))
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="another process holds it for writing"):
        await change(store)
    other.rollback()
    other.close()
    assert await change(store) == 1
    await store.close()


async def test_a_cut_off_ledger_is_found(store: Store, path: Path) -> None:
    for _ in range(3):
        await change(store)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM ledger WHERE revision = 3")
    connection.close()
    with pytest.raises(Corrupt, match="ends at revision 2, the store is at 3"):
        await store.verify_ledger()


async def test_cancelled_callers_leave_no_lock_behind(path: Path) -> None:
    store = await Store.open(f"sqlite+aiosqlite:///{path}", StoreOptions(synchronous="OFF", busy_timeout_ms=0))
    for delay in range(12):
        tasks = [asyncio.create_task(change(store)), asyncio.create_task(store.wait(0, 0.0))]
        await asyncio.sleep(delay / 2000)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        last = await change(store)
    assert (await store.verify_ledger()).revision == last
    await store.close()


async def test_a_closed_store_answers_nothing(path: Path) -> None:
    store = await Store.open(f"sqlite+aiosqlite:///{path}", FAST)
    running = asyncio.create_task(change(store))
    await asyncio.sleep(0)
    await store.close()
    assert await running == 1, "a transaction that runs is let end"
    for call in (lambda: change(store), lambda: store.verify_ledger(), lambda: store.wait(0, 1.0)):
        with pytest.raises(Unavailable, match="the library is closed"):
            await call()


# ---- waiting --------------------------------------------------------------------------------------------------


async def test_wait_returns_at_once_when_behind_and_on_the_next_change_when_not(store: Store) -> None:
    await change(store)
    assert await store.wait(0, timeout_s=60) == 1
    waiter = asyncio.create_task(store.wait(1, timeout_s=60))
    await asyncio.sleep(0.02)
    assert not waiter.done()
    await change(store)
    assert await waiter == 2


async def test_wait_gives_up_and_sees_another_processes_change_then(store: Store, path: Path) -> None:
    assert await store.wait(0, timeout_s=0.01) == 0
    other = await Store.open(f"sqlite+aiosqlite:///{path}", FAST)
    waiter = asyncio.create_task(store.wait(0, timeout_s=0.3))
    await asyncio.sleep(0.05)
    await change(other)
    assert await waiter == 1
    await other.close()


async def test_a_change_between_look_and_wait_is_not_missed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    look = store._newest

    async def look_then_change() -> int:
        newest = await look()
        await change(store)
        return newest

    monkeypatch.setattr(store, "_newest", look_then_change)
    async with asyncio.timeout(60):
        assert await store.wait(0, timeout_s=3600) == 1


async def test_closing_ends_a_wait(path: Path) -> None:
    store = await Store.open(f"sqlite+aiosqlite:///{path}", FAST)
    waiter = asyncio.create_task(store.wait(0, timeout_s=60))
    await asyncio.sleep(0.05)
    await store.close()
    with pytest.raises(Unavailable, match="the library is closed"):
        await waiter


# ---- the outbox -----------------------------------------------------------------------------------------------


class Bus:
    """Keeps what it is handed; breaks at the event of type `breaks_at`."""

    def __init__(self, breaks_at: str = "") -> None:
        self.breaks_at = breaks_at
        self.seen: list[OutboxEvent] = []

    @property
    def names(self) -> list[str]:
        return [event.event.payload_type for event in self.seen]

    async def __call__(self, event: OutboxEvent) -> None:
        if event.event.payload_type == self.breaks_at:
            raise Unavailable("bus away")
        self.seen.append(event)


async def publishable(store: Store, count: int) -> None:
    for number in range(count):
        await change(store, Event(f"e{number}", b"p"))


async def test_a_broken_bus_keeps_order_and_loses_nothing(store: Store) -> None:
    await publishable(store, 4)
    bus = Bus(breaks_at="e2")
    with pytest.raises(Unavailable):
        await store.drain(bus)
    assert bus.names == ["e0", "e1"]
    bus.breaks_at = ""
    assert await store.drain(bus) == 2
    assert bus.names == ["e0", "e1", "e2", "e3"]


async def test_an_event_whose_mark_was_lost_comes_again_with_its_id(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publishable(store, 2)
    bus = Bus()

    async def lost(self: object, sequences: object) -> None:
        raise RuntimeError("power lost")

    with monkeypatch.context() as patch:
        patch.setattr("esper.urza.writer.Writer.mark_published", lost)
        with pytest.raises(RuntimeError, match="power lost"):
            await store.drain(bus)
    assert await store.drain(bus) == 2
    assert bus.names == ["e0", "e1", "e0", "e1"]
    ids = [event.event_id for event in bus.seen]
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2


async def test_two_drains_at_once_hand_each_event_out_once(store: Store) -> None:
    await publishable(store, 10)
    bus = Bus()
    assert sum(await asyncio.gather(store.drain(bus), store.drain(bus))) == 10
    assert bus.names == [f"e{number}" for number in range(10)]


async def test_events_that_arrive_while_draining_are_drained_too(store: Store) -> None:
    await publishable(store, 1)

    async def publish(event: OutboxEvent) -> None:
        if event.sequence < 5:
            await change(store, Event(f"next {event.sequence}", b""))

    assert await store.drain(publish) == 5
