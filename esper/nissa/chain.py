"""The audit trail's chain: how an entry's digest is made, and how a chain is checked. Pure.

An entry's digest covers the digest before it and every field of its own, so that to
change, drop or swap an entry breaks the chain at that entry. That the newest entries
were cut off, or forged ones added, shows against the head, which is kept beside the file.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from esper.api.nissa.v1 import observability_pb2 as pb

# Digest before the first entry.
GENESIS = "0" * 64
_DOMAIN = b"esper.audit.v1\0"


@dataclass(frozen=True, slots=True)
class Head:
    """Position of the newest entry, and its digest."""

    position: int = 0
    digest: str = GENESIS


@dataclass(frozen=True, slots=True)
class Verified:
    """Entries that were looked at, and the position of the first bad one; 0 where there is none."""

    entries: int
    first_bad_position: int

    @property
    def intact(self) -> bool:
        return self.first_bad_position == 0


def digest(previous: str, entry: pb.AuditEntry) -> str:
    """The digest of `entry`, behind the one whose digest is `previous`; its own digest field is not looked at."""
    fields = [
        previous,
        entry.position,
        entry.time.seconds,
        entry.time.nanos,
        entry.actor,
        entry.action,
        entry.run_id,
        entry.detail_json,
    ]
    return hashlib.sha256(_DOMAIN + canonical_json(fields).encode()).hexdigest()


def chained(head: Head, entry: pb.AuditEntry) -> pb.AuditEntry:
    """`entry` with the position and digest that it has behind `head`."""
    following = pb.AuditEntry()
    following.CopyFrom(entry)
    following.position = head.position + 1
    following.digest = digest(head.digest, following)
    return following


def follows(head: Head, position: int, body: bytes) -> Head | None:
    """The head behind the stored entry; None where it does not follow from `head`."""
    try:
        entry = pb.AuditEntry.FromString(body)
    except (DecodeError, TypeError):
        return None
    place = head.position + 1
    if (position, entry.position) != (place, place) or entry.digest != digest(head.digest, entry):
        return None
    return Head(position, entry.digest)


def verify(stored: Iterable[tuple[int, bytes]], kept: Head) -> Verified:
    """Follow the chain from its beginning to `kept`, the head as it was written beside it."""
    head, entries = Head(), 0
    for position, body in stored:
        entries += 1
        after = follows(head, position, body)
        if after is None or (after.position == kept.position and after != kept) or after.position > kept.position:
            return Verified(entries, head.position + 1)
        head = after
    return Verified(entries, 0 if head == kept else head.position + 1)


def canonical_json(value: object) -> str:
    """Sorted keys, no spaces, ASCII; numbers that are not finite become null."""
    return json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
