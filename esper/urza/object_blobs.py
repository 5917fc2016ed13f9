"""Blobs in an object store, through obstore. The bucket's own durability is relied on.

A wrong digest ends the upload before its last piece is sent, so the object never appears.
Uploads that a killed writer left open are the bucket's lifecycle rule's to remove.
"""

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError

from esper.errors import Corrupt, NotFound, Unavailable
from esper.urza.blobs import PIECE_BYTES, StoredBlob, closing, key_of, quarantine_key_of, verified

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import ObjectStore


class ObjectBlobs:
    """`Blobs` in one bucket and prefix; `name` is what errors call it, e.g. its URL."""

    def __init__(self, store: "ObjectStore", name: str) -> None:
        self._store = store
        self._name = name

    async def put(self, digest: str, size_bytes: int, pieces: AsyncIterable[bytes]) -> None:
        with self._reporting(f"writing blob {digest}"):
            async with closing(verified(f"blob {digest}", digest, pieces, size_bytes)) as checked:
                await obstore.put_async(self._store, key_of(digest), checked, use_multipart=size_bytes > PIECE_BYTES)

    async def read(self, digest: str) -> AsyncIterator[bytes]:
        try:
            async with closing(verified(f"{self._name}: blob {digest}", digest, self._pieces(digest))) as checked:
                async for piece in checked:
                    yield piece
        except Corrupt:
            with self._reporting(f"moving blob {digest} to quarantine"):
                await obstore.rename_async(self._store, key_of(digest), quarantine_key_of(digest))
            raise

    async def exists(self, digest: str) -> bool:
        with self._reporting(f"looking for blob {digest}"):
            try:
                await obstore.head_async(self._store, key_of(digest))
            except FileNotFoundError:
                return False
            return True

    async def delete(self, digest: str) -> None:
        with self._reporting(f"deleting blob {digest}"):
            try:
                await obstore.delete_async(self._store, key_of(digest))
            except FileNotFoundError:
                return

    async def stored(self) -> AsyncIterator[StoredBlob]:
        with self._reporting("listing blobs"):
            async for page in obstore.list(self._store, prefix="sha256"):
                for found in page:
                    modified_ns = int(found["last_modified"].timestamp() * 1e9)
                    yield StoredBlob(found["path"].rpartition("/")[2], found["size"], modified_ns)

    async def delete_partial(self, before_ns: int) -> int:
        return 0

    async def _pieces(self, digest: str) -> AsyncIterator[bytes]:
        with self._reporting(f"reading blob {digest}"):
            try:
                found = await obstore.get_async(self._store, key_of(digest))
            except FileNotFoundError:
                raise NotFound(f"{self._name}: no blob {digest}") from None
            async for block in found.stream(min_chunk_size=PIECE_BYTES):
                view = memoryview(block)
                for start in range(0, len(view), PIECE_BYTES):
                    yield bytes(view[start : start + PIECE_BYTES])

    @contextmanager
    def _reporting(self, doing: str) -> "Iterator[None]":
        try:
            yield
        except (BaseError, PermissionError) as error:
            raise Unavailable(
                f"{self._name}: {doing} failed ({error}); check the bucket, its credentials and the network, then retry"
            ) from error
