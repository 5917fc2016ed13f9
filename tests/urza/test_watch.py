"""Watching: replay, then live, each revision once, whoever writes meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import OutOfRange, Unavailable
from esper.urza import library as libraries
from esper.urza.blobs import closing
from esper.urza.library import CentralLibrary

from .fakes import add_blueprint, open_library


def watch(library: CentralLibrary, after: int = 0) -> AsyncIterator[pb.WatchLibraryResponse]:
    return library.watch_library(pb.WatchLibraryRequest(after_revision=after))


async def take(changes: AsyncIterator[pb.WatchLibraryResponse], count: int) -> list[pb.WatchLibraryResponse]:
    return [await anext(changes) for _ in range(count)]


async def test_replay_then_live(library: CentralLibrary) -> None:
    ids = [await add_blueprint(library, number) for number in range(3)]
    async with closing(watch(library, after=1)) as changes:
        old = await take(changes, 2)
        assert [one.entry.resource_name for one in old] == [f"blueprints/{name}" for name in ids[1:]]
        following = asyncio.create_task(anext(changes))
        await asyncio.sleep(0.02)
        assert not following.done()
        await add_blueprint(library, 9)
        live = await following
    assert (live.header.revision, live.entry.revision, live.entry.action) == (4, 4, "blueprint.create")


async def test_what_is_watched_is_what_the_ledger_lists(library: CentralLibrary) -> None:
    for number in range(3):
        await add_blueprint(library, number)
    async with closing(watch(library)) as changes:
        seen = await take(changes, 3)
    assert [one.entry for one in seen] == list((await library.list_ledger(pb.ListLedgerRequest())).entries)


async def test_a_revision_ahead_of_the_store_is_refused(library: CentralLibrary) -> None:
    await add_blueprint(library)
    with pytest.raises(OutOfRange, match="after_revision is 2, the library is at 1"):
        await anext(watch(library, after=2))


async def test_no_gap_and_no_repeat_while_others_write(library: CentralLibrary, tmp_path: Path) -> None:
    elsewhere = await open_library(tmp_path)
    writers = [
        asyncio.create_task(write(target, first))
        for target, first in ((library, 0), (library, 100), (elsewhere, 200), (elsewhere, 300))
    ]
    watchers = [asyncio.create_task(revisions(library, after, 40)) for after in (0, 0, 0)]
    await asyncio.gather(*writers)
    late = asyncio.create_task(revisions(elsewhere, 25, 40))
    assert [await watcher for watcher in watchers] == [list(range(1, 41))] * 3
    assert await late == list(range(26, 41))
    await elsewhere.close()


async def write(library: CentralLibrary, first: int) -> None:
    for number in range(first, first + 10):
        await add_blueprint(library, number)


async def revisions(library: CentralLibrary, after: int, last: int) -> list[int]:
    seen = []
    async with closing(watch(library, after)) as changes:
        async for change in changes:
            seen.append(change.header.revision)
            if seen[-1] == last:
                return seen
    return seen


async def test_a_long_replay_comes_in_batches(library: CentralLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_WATCH_BATCH", 3)
    for number in range(10):
        await add_blueprint(library, number)
    assert await revisions(library, 0, 10) == list(range(1, 11))


async def test_changes_of_this_process_are_not_polled_for(
    library: CentralLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "_WATCH_BATCH", 3)
    monkeypatch.setattr(libraries, "_WATCH_POLL_S", 3600.0)
    for number in range(7):
        await add_blueprint(library, number)
    watcher = asyncio.create_task(revisions(library, 0, 9))
    for number in (7, 8):
        await asyncio.sleep(0.05)
        await add_blueprint(library, number)
    async with asyncio.timeout(60):
        assert await watcher == list(range(1, 10))


async def test_closing_the_library_ends_a_watch(tmp_path: Path) -> None:
    library = await open_library(tmp_path)
    watching = asyncio.create_task(anext(watch(library)))
    await asyncio.sleep(0.05)
    await library.close()
    with pytest.raises(Unavailable, match="the library is closed"):
        await watching
