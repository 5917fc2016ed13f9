"""A snapshot file cut into files: each large tensor one of its own, the small ones together.

Each is a safetensors file again, and its bytes depend on nothing but the tensors in it, so that
checkpoints can share the files of what did not change. Bytes are copied here, never interpreted.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import Corrupt

OWN_FILE_BYTES = 1 << 16  # tensors from this size on have files of their own; a file costs more than fewer bytes save
_METADATA, _OFFSETS = "__metadata__", "data_offsets"
_LENGTH_BYTES, _ALIGNMENT = 8, 8  # of the header
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """A safetensors file to be: its header, and the stretches of the snapshot's bytes that follow it."""

    source: memoryview
    header: bytes
    stretches: tuple[tuple[int, int], ...]  # begin and end in `source`

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Its bytes, in order, at most 1 MiB at a time after the header."""
        yield self.header
        for begin, end in self.stretches:
            for at in range(begin, end, _CHUNK_BYTES):
                yield self.source[at : min(end, at + _CHUNK_BYTES)]

    def digest(self) -> str:
        """sha256 of its bytes, in hexadecimal."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def is_in(self, path: Path) -> bool:
        """Whether the file holds these bytes and no others. Raises OSError where it cannot be read."""
        with path.open("rb") as file:
            return all(file.read(len(chunk)) == bytes(chunk) for chunk in self.chunks()) and not file.read(1)


def cut(snapshot: Path) -> tuple[Cut, list[Cut]]:
    """The small tensors of a snapshot file with its metadata, and its large ones one by one.

    Raises Corrupt where the file is not a safetensors file.
    """
    source = _bytes_of(snapshot)
    try:
        length = int.from_bytes(source[:_LENGTH_BYTES], "little")
        start = _LENGTH_BYTES + length
        header = json.loads(bytes(source[_LENGTH_BYTES:start]))
        metadata = header.pop(_METADATA, {})
        tensors = sorted(header.items(), key=lambda item: tuple(item[1][_OFFSETS]))
        ends = [end for _, entry in tensors for end in entry[_OFFSETS]]
        if start + max(ends, default=0) != len(source):
            raise ValueError(f"its header is of {start + max(ends, default=0)} bytes, and it has {len(source)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{snapshot} is not a snapshot: {error}") from error
    large = [item for item in tensors if _size_bytes(item[1]) >= OWN_FILE_BYTES]
    small = [item for item in tensors if _size_bytes(item[1]) < OWN_FILE_BYTES]
    return _cut(source, start, small, metadata), [_cut(source, start, [item], {}) for item in large]


def files_of(manifest: trainer_pb2.CheckpointManifest, tensors: Path) -> list[Path]:
    """All files of a checkpoint's tensors; `tensors`: the one with the metadata."""
    return [*(tensors.with_name(file_name(file.digest)) for file in manifest.files), tensors]


def joined(manifest: trainer_pb2.CheckpointManifest, tensors: Path) -> bytes:
    """All files of a checkpoint's tensors, one behind the other."""
    return b"".join(path.read_bytes() for path in files_of(manifest, tensors))


def split(manifest: trainer_pb2.CheckpointManifest, data: bytes, tensors: Path) -> Path:
    """Write what `joined` made into files again, beside `tensors`, the one with the metadata, which is returned."""
    view, at = memoryview(data), 0
    for file in manifest.files:
        tensors.with_name(file_name(file.digest)).write_bytes(view[at : at + file.size_bytes])
        at += file.size_bytes
    tensors.write_bytes(view[at:])
    return tensors


def file_name(digest: str) -> str:
    """Name of a large tensor's file."""
    return f"{digest}.safetensors"


def _size_bytes(entry: dict[str, Any]) -> int:
    begin, end = entry[_OFFSETS]
    return int(end - begin)


def _cut(source: memoryview, start: int, tensors: list[tuple[str, Any]], metadata: dict[str, str]) -> Cut:
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    stretches, size = [], 0
    for name, entry in tensors:
        begin, end = entry[_OFFSETS]
        header[name] = {**entry, _OFFSETS: [size, size + end - begin]}
        stretches.append((start + begin, start + end))
        size += end - begin
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return Cut(source, len(text).to_bytes(_LENGTH_BYTES, "little") + text, tuple(stretches))


def _bytes_of(path: Path) -> memoryview:
    """A file's bytes, read as they are asked for."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
