"""The blob port: one suite over local files, and over obstore as it stands for S3."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore, MemoryStore

from esper.errors import Corrupt, NotFound
from esper.urza.blobs import Blobs, closing, key_of, quarantine_key_of, read_whole
from esper.urza.local_blobs import LocalBlobs
from esper.urza.object_blobs import ObjectBlobs


class Shelf:
    """A blob store under test, and how to spoil what lies in it."""

    def __init__(self, blobs: Blobs, spoil: Callable[[str, bytes], None], has: Callable[[str], bool]) -> None:
        self.blobs = blobs
        self.spoil = spoil
        self.has = has


def _folder_shelf(blobs: Blobs, root: Path) -> Shelf:
    return Shelf(blobs, lambda key, data: _write(root / key, data), lambda key: (root / key).exists())


def _write(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _has(store: Any, key: str) -> bool:
    try:
        store.head(key)
    except FileNotFoundError:
        return False
    return True


@pytest.fixture(params=["local files", "obstore memory", "obstore files"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "local files":
        return _folder_shelf(LocalBlobs(tmp_path), tmp_path)
    if request.param == "obstore files":
        return _folder_shelf(ObjectBlobs(LocalStore(tmp_path), "test store"), tmp_path)
    memory = MemoryStore()
    return Shelf(ObjectBlobs(memory, "test store"), memory.put, lambda key: _has(memory, key))


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def put(shelf: Shelf, data: bytes, *parts: bytes) -> str:
    await shelf.blobs.put(digest_of(data), len(data), pieces(*(parts or (data,))))
    return digest_of(data)


@pytest.mark.parametrize("data", [b"", b"x", b"abc" * 1000, bytes(range(256)) * 50_000], ids=len)
async def test_a_blob_comes_back_as_it_went_in(shelf: Shelf, data: bytes) -> None:
    digest = await put(shelf, data)
    assert await shelf.blobs.exists(digest)
    assert await read_whole(shelf.blobs, digest) == data
    assert shelf.has(key_of(digest))


async def test_pieces_are_joined_in_order(shelf: Shelf) -> None:
    digest = await put(shelf, b"one two three", b"one ", b"", b"two ", b"three")
    assert await read_whole(shelf.blobs, digest) == b"one two three"


@pytest.mark.parametrize(
    ("parts", "size"), [((b"abd",), 3), ((b"abc", b"d"), 3), ((b"ab",), 3), ((b"abc",), 4), ((), 3)]
)
async def test_wrong_bytes_never_become_visible(shelf: Shelf, parts: tuple[bytes, ...], size: int) -> None:
    with pytest.raises(Corrupt, match=digest_of(b"abc")):
        await shelf.blobs.put(digest_of(b"abc"), size, pieces(*parts))
    assert not await shelf.blobs.exists(digest_of(b"abc"))
    assert [blob async for blob in shelf.blobs.stored()] == []


async def test_a_large_wrong_blob_never_becomes_visible(shelf: Shelf) -> None:
    block = b"\0" * (1 << 20)
    wanted = digest_of(block * 12 + b"a")
    with pytest.raises(Corrupt, match=wanted):
        await shelf.blobs.put(wanted, 12 * len(block) + 1, pieces(*[block] * 12, b"b"))
    assert not await shelf.blobs.exists(wanted)


async def test_a_source_that_breaks_leaves_nothing(shelf: Shelf) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"ab"
        raise ConnectionResetError("peer went away")

    with pytest.raises(ConnectionResetError):
        await shelf.blobs.put(digest_of(b"abc"), 3, broken())
    assert not await shelf.blobs.exists(digest_of(b"abc"))


async def test_a_flipped_byte_is_found_moved_away_and_healed(shelf: Shelf) -> None:
    data = b"weights" * 400_000
    digest = await put(shelf, data)
    shelf.spoil(key_of(digest), b"W" + data[1:])
    received = bytearray()
    with pytest.raises(Corrupt, match=digest):
        async with closing(shelf.blobs.read(digest)) as read:
            async for piece in read:
                received += piece
    assert len(received) < len(data), "the last piece of a wrong blob must not be handed out"
    assert shelf.has(quarantine_key_of(digest))
    assert not await shelf.blobs.exists(digest)
    await put(shelf, data)
    assert await read_whole(shelf.blobs, digest) == data


async def test_putting_again_heals_a_spoiled_blob(shelf: Shelf) -> None:
    digest = await put(shelf, b"data")
    shelf.spoil(key_of(digest), b"dat_")
    await put(shelf, b"data")
    assert await read_whole(shelf.blobs, digest) == b"data"


async def test_a_missing_blob_is_not_found(shelf: Shelf) -> None:
    with pytest.raises(NotFound, match=digest_of(b"never")):
        await read_whole(shelf.blobs, digest_of(b"never"))


async def test_delete_is_idempotent_and_listing_follows(shelf: Shelf) -> None:
    kept, gone = await put(shelf, b"kept"), await put(shelf, b"gone")
    await shelf.blobs.delete(gone)
    await shelf.blobs.delete(gone)
    (left,) = [blob async for blob in shelf.blobs.stored()]
    assert (left.digest, left.size_bytes) == (kept, 4)


async def test_writers_of_one_blob_do_not_disturb_each_other(shelf: Shelf) -> None:
    data = b"shared" * 10_000
    await asyncio.gather(*(put(shelf, data) for _ in range(8)))
    assert await read_whole(shelf.blobs, digest_of(data)) == data
    assert len([blob async for blob in shelf.blobs.stored()]) == 1
