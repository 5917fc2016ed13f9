"""Leases: at most one holder of a name, for as long as it keeps renewing.

On JetStream KV. A lease ends by the broker's clock, one time to live for a whole bucket:
nats-py can set one per key only when it is made, not when it is renewed. No marker is
asked for when it ends, which nats-py would read as a key with value None.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from nats.js import api
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from esper import errors
from esper.oona.jetstream import JetStreamBus

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A held name. `fence` grows with every holder and renewal: a store can refuse a smaller one."""

    name: str
    holder: str
    fence: int


class Leases:
    """Leases that last `ttl_s` seconds, at least 0.1, unless they are renewed. Make it with `open`."""

    def __init__(self, bus: JetStreamBus, bucket: str) -> None:
        self._bus = bus
        self._bucket = bucket
        self._nonce = secrets.token_hex(8)

    @classmethod
    async def open(cls, bus: JetStreamBus, ttl_s: float = 10.0) -> Self:
        """The leases of `ttl_s` on this bus; everybody who competes for a name uses the same `ttl_s`."""
        if ttl_s < 0.1:
            raise errors.InvalidConfig(f"a lease of {ttl_s:g} s is shorter than the broker can keep; at least 0.1 s")
        bucket = f"{bus.prefix}_leases_{round(ttl_s * 1000)}ms"
        link = await bus.line.link(TIMEOUT_S)
        async with link.held(TIMEOUT_S):
            await link.js.create_key_value(
                api.KeyValueConfig(bucket=bucket, ttl=ttl_s, history=1, storage=api.StorageType.FILE, replicas=1)
            )
        return cls(bus, bucket)

    async def acquire(self, name: str, holder: str) -> Lease | None:
        """The lease on `name` for `holder`; None while another has it.

        After Unavailable it may be held or not: ask again.
        """
        async with self._held() as bucket:
            try:
                return Lease(name, holder, await bucket.create(name, self._value(holder)))
            except (KeyWrongLastSequenceError, KeyNotFoundError):
                # the second: refused for another's lease, which ended before nats-py could look at it
                return await self._ours(bucket, name, holder)

    async def renew(self, lease: Lease) -> Lease:
        """The same lease for another `ttl_s`. Raises Conflict when it has ended; after Unavailable ask again."""
        async with self._held() as bucket:
            try:
                fence = await bucket.update(lease.name, self._value(lease.holder), last=lease.fence)
                return Lease(lease.name, lease.holder, fence)
            except KeyWrongLastSequenceError as error:
                if (renewed := await self._ours(bucket, lease.name, lease.holder)) is not None:
                    return renewed
                raise errors.Conflict(
                    f"lease {lease.name!r} of {lease.holder!r} has ended; acquire it again"
                ) from error

    async def release(self, lease: Lease) -> None:
        """Give `lease` up; nothing happens when it has ended."""
        try:
            async with self._held() as bucket:
                await bucket.delete(lease.name, last=lease.fence)
        except errors.PreconditionFailed:
            return  # another revision is there: another holder's, or none of ours

    async def _ours(self, bucket: KeyValue, name: str, holder: str) -> Lease | None:
        """The lease, if it is ours after all: an earlier attempt arrived, and its answer did not."""
        try:
            entry = await bucket.get(name)
        except KeyNotFoundError:
            return None  # it ended just now; whoever asks next may have it
        return Lease(name, holder, entry.revision or 0) if entry.value == self._value(holder) else None

    def _value(self, holder: str) -> bytes:
        return f"{holder}\n{self._nonce}".encode()

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[KeyValue]:
        link = await self._bus.line.link(TIMEOUT_S)
        async with link.held(TIMEOUT_S):
            yield await link.js.key_value(self._bucket)
