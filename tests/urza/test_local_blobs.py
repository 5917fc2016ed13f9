"""Local files: full disks, dead writers, healing races. The rest is test_blobs.py."""

import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.errors import Corrupt, Exhausted, InvalidConfig
from esper.urza.blobs import key_of, open_blobs, quarantine_key_of, read_whole
from esper.urza.local_blobs import LocalBlobs

DATA = b"bytes" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("call", ["write", "fsync", "open", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_exhausted_with_path_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    blobs = LocalBlobs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        if call == "replace":
            patch.setattr(Path, "replace", full)
        with pytest.raises(Exhausted, match=f"{key_of(DIGEST)}: no room for 5000 bytes"):
            await blobs.put(DIGEST, len(DATA), pieces(DATA))
    assert files_below(tmp_path) == []
    await blobs.put(DIGEST, len(DATA), pieces(DATA))
    assert await read_whole(blobs, DIGEST) == DATA


async def test_another_disk_error_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(OSError, match="Input/output error"):
        await LocalBlobs(tmp_path).put(DIGEST, len(DATA), pieces(DATA))


async def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, bytes(data[:7])))
    blobs = LocalBlobs(tmp_path)
    await blobs.put(DIGEST, len(DATA), pieces(DATA))
    assert await read_whole(blobs, DIGEST) == DATA


async def test_file_and_directories_are_synced_and_renamed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(fd: int) -> None:
        calls.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink().name.partition('.')[0]}")
        fsync(fd)

    def note_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    root = tmp_path / "blobs"
    await LocalBlobs(root).put(DIGEST, len(DATA), pieces(DATA))
    directories = [f"fsync {name}" for name in (DIGEST[:2], "sha256", "blobs", tmp_path.name)]
    assert calls == [f"fsync {DIGEST}", "rename", *directories]


async def test_a_dead_writers_file_is_removed_by_age(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    await blobs.put(DIGEST, len(DATA), pieces(DATA))
    left = tmp_path / "partial" / f"{DIGEST}.0011"
    left.write_bytes(b"half")
    written_ns = left.stat().st_mtime_ns
    assert await blobs.delete_partial(written_ns) == 0
    assert await blobs.delete_partial(written_ns + 1) == 1
    assert files_below(tmp_path) == [key_of(DIGEST)]


async def test_a_blob_that_was_healed_while_it_was_read_is_not_taken_away(tmp_path: Path) -> None:
    big = os.urandom(3 << 20)
    digest = hashlib.sha256(big).hexdigest()
    blobs = LocalBlobs(tmp_path)
    await blobs.put(digest, len(big), pieces(big))
    path = tmp_path / key_of(digest)
    path.write_bytes(big[:-1] + b"?")
    reading = blobs.read(digest)
    await anext(reading)
    await blobs.put(digest, len(big), pieces(big))
    with pytest.raises(Corrupt):
        async for _ in reading:
            pass
    assert not (tmp_path / quarantine_key_of(digest)).exists()
    assert await read_whole(blobs, digest) == big


async def test_a_reader_that_stops_early_leaves_no_open_file(tmp_path: Path) -> None:
    big = os.urandom(3 << 20)
    digest = hashlib.sha256(big).hexdigest()
    blobs = LocalBlobs(tmp_path)
    await blobs.put(digest, len(big), pieces(big))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        reading = blobs.read(digest)
        await anext(reading)
        await reading.aclose()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_store_is_chosen_by_url(tmp_path: Path) -> None:
    assert isinstance(open_blobs(f"file://{tmp_path}"), LocalBlobs)
    assert isinstance(open_blobs(str(tmp_path)), LocalBlobs)
    assert type(open_blobs("s3://bucket/prefix")).__name__ == "ObjectBlobs"
    with pytest.raises(InvalidConfig, match="the scheme is ftp"):
        open_blobs("ftp://host/path")
