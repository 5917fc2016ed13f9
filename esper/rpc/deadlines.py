"""How long a call may still take, so that a servicer can hand the rest downstream.

gRPC does not forward a deadline by itself: pass `timeout=remaining(context)`.
"""

import contextvars
import time
from typing import Any

import grpc

from esper import errors

# Monotonic time at which the server's own limit ends a call that came without a deadline.
imposed: contextvars.ContextVar[float | None] = contextvars.ContextVar("esper_rpc_deadline", default=None)


def remaining(context: grpc.aio.ServicerContext[Any, Any], at_most_s: float | None = None) -> float:
    """Seconds left for this call, at most `at_most_s`: the caller's deadline, else the server's own.

    Raises DeadlineExceeded when nothing is left: a downstream call would be wasted.
    """
    left: float | None = context.time_remaining()
    if left is None and (end := imposed.get()) is not None:
        left = end - time.monotonic()
    if left is None:
        if at_most_s is None:
            raise errors.InvalidRequest("the call has no deadline and no server limit; pass at_most_s")
        return at_most_s
    if left <= 0:
        raise errors.DeadlineExceeded("the call's deadline is over; nothing is left to hand downstream")
    return left if at_most_s is None else min(left, at_most_s)
