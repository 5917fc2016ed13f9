"""Removing what belongs to nobody: blobs of uploads that never became a kernel, and old requests.

A blob is removed only while the store's write lock is held and no row refers to it, and a
kernel's row is added only while the lock is held and its blobs are there. So no row ever
points at a blob that a sweep took, in whichever process it ran.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from esper.urza.blobs import Blobs, closing
from esper.urza.store import Store
from esper.urza.writer import Writer

log = logging.getLogger(__name__)

_BATCH = 100


@dataclass(frozen=True, slots=True)
class Swept:
    """How many of each were removed."""

    blobs: int
    partial_blobs: int
    requests: int
    events: int


async def sweep(store: Store, blobs: Blobs, before_ns: int) -> Swept:
    """Remove orphan blobs, unfinished writes, remembered requests and published events older than that."""
    removed, old = 0, list[str]()
    async with closing(blobs.stored()) as listed:
        async for blob in listed:
            if blob.modified_ns < before_ns:
                old.append(blob.digest)
            if len(old) == _BATCH:
                removed += await _remove_orphans(store, blobs, old)
                old = []
    removed += await _remove_orphans(store, blobs, old)
    requests, events = await store.write(lambda tx: tx.forget_before(before_ns))
    return Swept(removed, await blobs.delete_partial(before_ns), requests, events)


async def _remove_orphans(store: Store, blobs: Blobs, digests: list[str]) -> int:
    async def remove(tx: Writer) -> int:
        orphans = set(digests) - await tx.referenced(digests)
        for digest in sorted(orphans):
            await blobs.delete(digest)
        return len(orphans)

    return await store.write(remove) if digests else 0


async def keep_swept(
    sweep_older: Callable[[float], Awaitable[Swept]], first_after_s: float, every_s: float, age_s: float
) -> None:
    """For good: remove what is older than `age_s` each `every_s`, first `first_after_s` after the start.

    The first wait is its own, as a process may not live as long as `every_s`.
    """
    wait_s = first_after_s
    while True:
        await asyncio.sleep(wait_s)
        await sweep_once(sweep_older, age_s)
        wait_s = every_s


async def sweep_once(sweep_older: Callable[[float], Awaitable[Swept]], age_s: float) -> None:
    """One sweep. What it could not remove is left to the next: nobody waits for it, so an error is logged."""
    try:
        swept = await sweep_older(age_s)
    except Exception as error:  # of whatever kind: of the database, of the blob store, of the disk
        log.error("the library was not swept: %s", error, exc_info=error)
    else:
        log.info(
            "swept: %d blobs, %d unfinished ones, %d requests, %d events older than %g s",
            swept.blobs, swept.partial_blobs, swept.requests, swept.events, age_s,
        )  # fmt: skip
