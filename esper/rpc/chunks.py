"""Files as streams of common.v1.Chunk: HEADER, then DATA of up to 1 MiB each, then the next file's HEADER.

The receiver checks names, order, sizes and digests as the bytes come in, and names
the file in every refusal. The last piece of a file is handed on only after its digest
was checked, so a consumer that acts on `Piece.last` acts on verified files.
"""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from esper import errors
from esper.api.common.v1 import artifact_pb2

CHUNK_BYTES = 1024 * 1024
MAX_FILES = 1024

Refusal = Callable[[str], errors.EsperError]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of one file. `last`: the file is complete and its digest is right."""

    file: str
    data: bytes
    last: bool


async def send(files: Mapping[str, bytes | Path]) -> AsyncIterator[artifact_pb2.Chunk]:
    """Chunks of `files`, in their order. A Path is read twice, once for the digest; never whole.

    Raises Corrupt when a file changes between the two reads.
    """
    for name, source in files.items():
        sent = hashlib.sha256()
        digest, size_bytes = _measure(source)
        header = artifact_pb2.BlobHeader(file=name, digest=digest, size_bytes=size_bytes)
        yield artifact_pb2.Chunk(header=header)
        for block in _blocks(source):
            sent.update(block)
            yield artifact_pb2.Chunk(data=block)
        if sent.hexdigest() != digest:
            raise errors.Corrupt(f"{name}: changed while it was sent; send it again")


async def receive(
    chunks: AsyncIterable[artifact_pb2.Chunk],
    *,
    limit_bytes: int,
    refuse: Refusal = errors.Corrupt,
) -> AsyncIterator[Piece]:
    """Verified pieces of the files in `chunks`.

    `limit_bytes`: of all files together; more is Exhausted, before the bytes arrive.
    `refuse`: the error for bytes that break grammar, size or digest: Corrupt for a
    client, errors.InvalidRequest for a server that was sent them.
    """
    state = _Receiver(limit_bytes, refuse)
    async for chunk in chunks:
        for piece in state.take(chunk):
            yield piece
    state.finish()


async def receive_files(
    chunks: AsyncIterable[artifact_pb2.Chunk], *, limit_bytes: int, refuse: Refusal = errors.Corrupt
) -> dict[str, bytes]:
    """Whole files by name, in memory; otherwise as `receive`."""
    files: dict[str, bytearray] = {}
    async for piece in receive(chunks, limit_bytes=limit_bytes, refuse=refuse):
        files.setdefault(piece.file, bytearray()).extend(piece.data)
    return {name: bytes(data) for name, data in files.items()}


def check_name(name: str, refuse: Refusal) -> None:
    """Raise unless `name` is empty (a bare blob) or a relative path that stays below its folder."""
    parts = PurePosixPath(name).parts
    if name and (name != "/".join(parts) or ".." in parts or name.startswith("/") or "\\" in name or "\0" in name):
        raise refuse(f"file name {name!r} is not a plain relative path, e.g. 'weights.safetensors' or 'triton/k.json'")


class _Receiver:
    """The grammar, as a state machine: a file is open while bytes of it are missing."""

    def __init__(self, limit_bytes: int, refuse: Refusal) -> None:
        self._room = limit_bytes
        self._limit_bytes = limit_bytes
        self._refuse = refuse
        self._names: set[str] = set()
        self._header: artifact_pb2.BlobHeader | None = None
        self._missing = 0
        self._digest = hashlib.sha256()

    def take(self, chunk: artifact_pb2.Chunk) -> list[Piece]:
        match chunk.WhichOneof("part"):
            case "header":
                return self._open(chunk.header)
            case "data":
                return self._fill(chunk.data)
            case _:
                raise self._refuse(f"{self._label()}: a chunk has neither a header nor data")

    def finish(self) -> None:
        if self._missing:
            raise self._refuse(f"{self._label()}: the stream ended {self._missing} bytes short of {self._size()}")

    def _open(self, header: artifact_pb2.BlobHeader) -> list[Piece]:
        self.finish()
        check_name(header.file, self._refuse)
        if header.file in self._names:
            raise self._refuse(f"{header.file or 'blob'}: announced twice in one stream")
        if len(self._names) == MAX_FILES:
            raise self._refuse(f"{header.file}: more than {MAX_FILES} files in one stream")
        if header.size_bytes > self._room:
            raise errors.Exhausted(
                f"{header.file or 'blob'}: {header.size_bytes} bytes announced, {self._room} of "
                f"{self._limit_bytes} are left for this stream"
            )
        self._names.add(header.file)
        self._room -= header.size_bytes
        self._header, self._missing, self._digest = header, header.size_bytes, hashlib.sha256()
        return [] if self._missing else [self._close(b"")]

    def _fill(self, data: bytes) -> list[Piece]:
        if self._header is None:
            raise self._refuse("the stream begins with data; a header comes first")
        if len(data) > CHUNK_BYTES:
            raise self._refuse(f"{self._label()}: a chunk of {len(data)} bytes, at most {CHUNK_BYTES} are allowed")
        if len(data) > self._missing:
            raise self._refuse(
                f"{self._label()}: {len(data) - self._missing} bytes more than the {self._size()} announced"
            )
        if not data:
            return []
        self._digest.update(data)
        self._missing -= len(data)
        return [Piece(self._header.file, data, False) if self._missing else self._close(data)]

    def _close(self, data: bytes) -> Piece:
        assert self._header is not None
        if self._digest.hexdigest() != self._header.digest:
            raise self._refuse(
                f"{self._label()}: sha256 is {self._digest.hexdigest()}, {self._header.digest} announced"
            )
        return Piece(self._header.file, data, True)

    def _label(self) -> str:
        return (self._header.file or "blob") if self._header is not None else "stream"

    def _size(self) -> int:
        return self._header.size_bytes if self._header is not None else 0


def _measure(source: bytes | Path) -> tuple[str, int]:
    digest, size_bytes = hashlib.sha256(), 0
    for block in _blocks(source):
        digest.update(block)
        size_bytes += len(block)
    return digest.hexdigest(), size_bytes


def _blocks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, Path):
        with source.open("rb") as stream:
            while block := stream.read(CHUNK_BYTES):
                yield block
    else:
        for start in range(0, len(source), CHUNK_BYTES):
            yield source[start : start + CHUNK_BYTES]
