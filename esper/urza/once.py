"""One write rpc, one transaction: the request id looked up, the change made, the reply remembered."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from esper.urza.codec import request_key
from esper.urza.store import Store
from esper.urza.writer import Writer

# Any reply of library_pb2 with a header: they share no base that says so.
R = TypeVar("R", bound=Any)


async def once(
    store: Store,
    clock_ns: Callable[[], int],
    request: Any,
    reply_type: type[R],
    change: Callable[[Writer], Awaitable[R]],
) -> R:
    """Make a change, or return the reply this request id got before.

    Raises Conflict where the id was another request's. A change that raises leaves nothing, its
    request id included.
    """
    key = request_key(request)

    async def write(tx: Writer) -> R:
        earlier = await tx.earlier_reply(request.request_id, key)
        if earlier is not None:
            first: R = reply_type.FromString(earlier)
            return first
        reply = await change(tx)
        reply.header.revision = tx.revision
        await tx.remember(request.request_id, key, reply.SerializeToString(deterministic=True), clock_ns())
        return reply

    return await store.write(write)
