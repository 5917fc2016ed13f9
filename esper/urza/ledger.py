"""The audit ledger's chain: how an entry's digest is made, and how a chain is checked.

Pure. An entry's digest covers the digest before it and every field of its own, so
changing, dropping or swapping an entry breaks every digest after it. The chain alone
cannot show that its newest entries were cut off; store.py keeps the head beside it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from esper.errors import Corrupt

# Digest before the first entry.
GENESIS = "0" * 64
_DOMAIN = b"esper.ledger.v1\0"


@dataclass(frozen=True, slots=True)
class Entry:
    """One change: `revision` counts from 1 by one, `detail_json` is canonical JSON."""

    revision: int
    time_ns: int
    action: str
    resource_name: str
    detail_json: str
    digest: str


@dataclass(frozen=True, slots=True)
class Head:
    """Newest revision and its digest; (0, GENESIS) for an empty ledger."""

    revision: int = 0
    digest: str = GENESIS


def canonical_json(value: object) -> str:
    """Sorted keys, no spaces, ASCII. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def append(head: Head, *, time_ns: int, action: str, resource_name: str, detail: Mapping[str, object]) -> Entry:
    """The entry that follows `head`."""
    revision, detail_json = head.revision + 1, canonical_json(detail)
    digest = _digest(head.digest, revision, time_ns, action, resource_name, detail_json)
    return Entry(revision, time_ns, action, resource_name, detail_json, digest)


def verify(entries: Iterable[Entry], head: Head = Head()) -> Head:  # noqa: B008 - frozen
    """Check entries that follow `head`, oldest first, and return the new head.

    Raises Corrupt naming the first revision that is missing, out of order or altered.
    """
    for entry in entries:
        if entry.revision != head.revision + 1:
            raise Corrupt(f"ledger: revision {head.revision + 1} is missing, the next one is {entry.revision}")
        wanted = _digest(
            head.digest, entry.revision, entry.time_ns, entry.action, entry.resource_name, entry.detail_json
        )
        if entry.digest != wanted:
            raise Corrupt(f"ledger: revision {entry.revision} has digest {entry.digest}, its fields give {wanted}")
        head = Head(entry.revision, entry.digest)
    return head


def _digest(previous: str, *fields: int | str) -> str:
    return hashlib.sha256(_DOMAIN + canonical_json([previous, *fields]).encode()).hexdigest()
