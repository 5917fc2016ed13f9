"""Taking a kernel's files in: each is one the body names, whole, and stored before any row is.

What is stored when an upload fails is nobody's; `CentralLibrary.sweep` removes it by age.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from esper.errors import Corrupt, InvalidRequest
from esper.urza.blobs import PIECE_BYTES, Blobs
from esper.urza.codec import FileEntry, KernelBody
from esper.urza.port import FilePiece


@dataclass(frozen=True, slots=True)
class Piece:
    """A `FilePiece` of a file at hand."""

    file: str
    data: bytes
    last: bool


async def cut(files: Mapping[str, bytes]) -> AsyncIterator[FilePiece]:
    """Files at hand, piece by piece, as an upload sends them."""
    for name, data in files.items():
        for start in range(0, max(len(data), 1), PIECE_BYTES):
            yield Piece(name, data[start : start + PIECE_BYTES], start + PIECE_BYTES >= len(data))


async def store_files(body: KernelBody, incoming: AsyncIterator[FilePiece], blobs: Blobs) -> None:
    """Store every file of `body`; they may come in any order, each in one run of pieces.

    Raises InvalidRequest naming the file that is missing, sent twice, not in the body, or whose
    digest or size is another; Exhausted when the disk is full.
    """
    missing = dict(body.files)
    async for first in incoming:
        entry = _expected(first.file, body, missing)
        try:
            await blobs.put(entry.digest, entry.size_bytes, _rest_of_file(first, incoming))
        except Corrupt as error:
            raise _refused(first.file, str(error)) from error
        del missing[first.file]
    if missing:
        raise _refused(min(missing), f"was not sent; missing of {len(body.files)}: {', '.join(sorted(missing))}")


async def _rest_of_file(first: FilePiece, incoming: AsyncIterator[FilePiece]) -> AsyncIterator[bytes]:
    piece = first
    yield piece.data
    while not piece.last:
        following = await anext(incoming, None)
        if following is None or following.file != first.file:
            raise _refused(first.file, "ended before its last piece")
        piece = following
        yield piece.data


def _expected(file: str, body: KernelBody, missing: Mapping[str, FileEntry]) -> FileEntry:
    if file not in body.files:
        raise _refused(file, f"is not in the body, which names {', '.join(sorted(body.files)) or 'none'}")
    if file not in missing:
        raise _refused(file, "was sent twice")
    return missing[file]


def _refused(file: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"file {file!r} {why}", {f"files[{file}]": why})
