"""Several named byte strings as one, for a pipe between two processes of one machine.

"esper frame 1\\n", then for each part: name length u16, size u64 (big endian), name, bytes
"""

import struct
from collections.abc import Mapping

from esper.errors import Corrupt

_MAGIC = b"esper frame 1\n"
_HEAD = struct.Struct("!HQ")
MAX_PARTS = 1024


def pack(parts: Mapping[str, bytes]) -> bytes:
    """The parts, in their order."""
    pieces = [_MAGIC]
    for name, data in parts.items():
        spelled = name.encode()
        pieces += [_HEAD.pack(len(spelled), len(data)), spelled, data]
    return b"".join(pieces)


def unpack(data: bytes) -> dict[str, bytes]:
    """The parts of what `pack` made. Raises Corrupt for anything else."""
    if not data.startswith(_MAGIC):
        raise Corrupt(f"{len(data)} bytes are no frame: they begin with {data[:16]!r}")
    parts: dict[str, bytes] = {}
    at = len(_MAGIC)
    while at < len(data):
        if len(data) - at < _HEAD.size or len(parts) >= MAX_PARTS:
            raise Corrupt(f"a frame of {len(data)} bytes ends inside a head, or has over {MAX_PARTS} parts")
        name_size, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        name, at = data[at : at + name_size], at + name_size
        part, at = data[at : at + size], at + size
        if len(part) != size or len(name) != name_size:
            raise Corrupt(f"a frame of {len(data)} bytes is cut short in part {name[:64]!r} of {size} bytes")
        try:
            text = name.decode()
        except UnicodeDecodeError as error:
            raise Corrupt(f"a frame names a part {name[:64]!r}, which is no text") from error
        if text in parts:
            raise Corrupt(f"a frame has part {text!r} twice")
        parts[text] = part
    return parts
