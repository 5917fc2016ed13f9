"""Blobs as local files: written aside, synced, renamed into place, directory synced."""

import errno
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from esper.errors import Corrupt, Exhausted, NotFound
from esper.urza.blobs import PIECE_BYTES, StoredBlob, closing, key_of, quarantine_key_of, verified
from esper.urza.threads import in_thread

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class LocalBlobs:
    """`Blobs` below one directory; any number of processes may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._partial = root / "partial"

    async def put(self, digest: str, size_bytes: int, pieces: AsyncIterable[bytes]) -> None:
        path = self._root / key_of(digest)
        aside = self._partial / f"{digest}.{secrets.token_hex(8)}"
        try:
            fd = _create(aside)
            try:
                async with closing(verified(f"blob {digest}", digest, pieces, size_bytes)) as checked:
                    async for piece in checked:
                        await in_thread(_write, fd, piece)
                await in_thread(os.fsync, fd)
            finally:
                os.close(fd)
            await in_thread(_publish, aside, path)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise Exhausted(
                f"{path}: no room for {size_bytes} bytes of a blob ({error.strerror}); free space on that "
                "disk, or give the library another blob directory, and send it again"
            ) from error
        finally:
            aside.unlink(missing_ok=True)

    async def read(self, digest: str) -> AsyncIterator[bytes]:
        path = self._root / key_of(digest)
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise NotFound(f"{path}: no such blob") from None
        try:
            async with closing(verified(str(path), digest, _pieces(fd))) as checked:
                async for piece in checked:
                    yield piece
        except Corrupt:
            await in_thread(self._quarantine, path, digest, os.fstat(fd).st_ino)
            raise
        finally:
            os.close(fd)

    async def exists(self, digest: str) -> bool:
        return await in_thread((self._root / key_of(digest)).exists)

    async def delete(self, digest: str) -> None:
        await in_thread((self._root / key_of(digest)).unlink, missing_ok=True)

    async def stored(self) -> AsyncIterator[StoredBlob]:
        for folder in sorted((self._root / "sha256").glob("??")):
            for blob in await in_thread(_files, folder):
                yield blob

    async def delete_partial(self, before_ns: int) -> int:
        left = [blob for blob in await in_thread(_files, self._partial) if blob.modified_ns < before_ns]
        for blob in left:
            (self._partial / blob.digest).unlink(missing_ok=True)
        return len(left)

    def _quarantine(self, path: Path, digest: str, inode: int) -> None:
        """Move the file that was read, unless somebody has put sound bytes in its place since."""
        aside = self._root / quarantine_key_of(digest)
        aside.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_ino == inode:
            path.replace(aside)


async def _pieces(fd: int) -> AsyncIterator[bytes]:
    while piece := await in_thread(os.read, fd, PIECE_BYTES):
        yield piece


def _create(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


def _write(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]


def _publish(aside: Path, path: Path) -> None:
    """Rename, then sync every directory that may have a new entry: digits, sha256, root and what root is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.replace(path)
    for folder in path.parents[:4]:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _files(folder: Path) -> list[StoredBlob]:
    if not folder.exists():
        return []
    listed = []
    with os.scandir(folder) as found:
        for entry in found:
            try:
                state = entry.stat()
            except FileNotFoundError:  # gone since it was listed
                continue
            listed.append(StoredBlob(entry.name, state.st_size, state.st_mtime_ns))
    return listed
