"""Content-addressed bytes: the port, the check every implementation shares, and the choice by URL.

A blob lives at `sha256/<first two digits>/<digest>`. Its digest and size are checked
before it can be seen, and its digest each time it is read. One that fails on reading is
moved to `quarantine/` and never handed out again; the same bytes may be put anew.
"""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from esper.errors import Corrupt, InvalidConfig
from esper.urza.threads import in_thread

# Bytes handled at a time, in memory and on the wire.
PIECE_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """One blob as listed; `modified_ns` is the store's clock, nanoseconds since 1970."""

    digest: str
    size_bytes: int
    modified_ns: int


class Blobs(Protocol):
    """A store of blobs."""

    async def put(self, digest: str, size_bytes: int, pieces: AsyncIterable[bytes]) -> None:
        """Store a blob, durably where the store can; putting it again renews its age and heals it.

        Raises Corrupt (digest or size is another), Exhausted (no room), Unavailable. Nothing is
        visible unless it returns.
        """
        ...

    def read(self, digest: str) -> AsyncIterator[bytes]:
        """Yield a blob's bytes; the last piece only after the digest was checked.

        Raises NotFound, and Corrupt when the bytes have changed; the blob is in quarantine then.
        """
        ...

    async def exists(self, digest: str) -> bool: ...

    async def delete(self, digest: str) -> None:
        """Remove a blob; one that is not there is no error."""
        ...

    def stored(self) -> AsyncIterator[StoredBlob]:
        """All blobs, in no order."""
        ...

    async def delete_partial(self, before_ns: int) -> int:
        """Remove what writers that died before that time left unfinished; how many."""
        ...


def open_blobs(url: str) -> Blobs:
    """`file:///path` or a path: local files. `s3://bucket/prefix`: S3, credentials as obstore finds them.

    Raises InvalidConfig for another scheme.
    """
    from esper.urza.local_blobs import LocalBlobs

    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalBlobs(Path(url))
    if scheme == "file":
        return LocalBlobs(Path(rest))
    if scheme in ("s3", "s3a"):
        from obstore.store import S3Store

        from esper.urza.object_blobs import ObjectBlobs

        return ObjectBlobs(S3Store.from_url(url), url)
    raise InvalidConfig(f"blob store {url}: the scheme is {scheme}; take file:///path or s3://bucket/prefix")


def key_of(digest: str) -> str:
    """Where a blob lives below the store's root."""
    return f"sha256/{digest[:2]}/{digest}"


def quarantine_key_of(digest: str) -> str:
    """Where a blob goes that is not what its digest says."""
    return f"quarantine/{digest}"


async def read_whole(blobs: Blobs, digest: str) -> bytes:
    """A blob in one piece. Raises what `Blobs.read` raises."""
    async with closing(blobs.read(digest)) as pieces:
        return b"".join([piece async for piece in pieces])


async def verified(
    what: str, digest: str, pieces: AsyncIterable[bytes], size_bytes: int | None = None
) -> AsyncIterator[bytes]:
    """Pass pieces through, the last one only after digest and size were checked.

    Whoever stops at the error therefore never holds the whole of a wrong blob. Raises Corrupt
    naming `what`.
    """
    seen, count, held = hashlib.sha256(), 0, b""
    async for piece in pieces:
        count += len(piece)
        if size_bytes is not None and count > size_bytes:
            raise Corrupt(f"{what}: more than the {size_bytes} bytes announced")
        await in_thread(seen.update, piece)
        if held:
            yield held
        held = piece
    if size_bytes is not None and count != size_bytes:
        raise Corrupt(f"{what}: {count} bytes, {size_bytes} were announced")
    if seen.hexdigest() != digest:
        raise Corrupt(f"{what}: its bytes have sha256 {seen.hexdigest()}, not {digest}")
    if held:
        yield held


def closing(stream: AsyncIterator[T]) -> aclosing[Any]:
    """Close an async generator on the way out, so that its file is closed now and not at collection."""
    return aclosing(cast(Any, stream))
