"""One connection to the broker, from its handshake to its end.

nats-py does not tell those who wait for an answer that the connection is lost, and can
swallow their cancellation; `Link.held` does the one and undoes the other.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from esper import errors

log = logging.getLogger(__name__)


@contextlib.contextmanager
def cancellation_kept() -> Iterator[None]:
    """Raise at the end of the body a cancellation that the body swallowed.

    nats-py drops one that meets it while it flushes, and Python 3.11's `asyncio.wait_for`,
    which it uses, one that meets the end of the wait. A task that is cancelled to close
    something would then go on for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


class Link:
    """One connection, from its handshake to its end. It never comes back."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.js: JetStreamContext = client.jetstream()
        self.lost = asyncio.Event()
        self._scopes: set[asyncio.Timeout] = set()

    @contextlib.asynccontextmanager
    async def held(self, timeout_s: float | None) -> AsyncIterator[None]:
        """Run the body for as long as the connection lasts.

        Raises Unavailable when it is lost, DeadlineExceeded after `timeout_s`, and nats-py's
        errors as ours.
        """
        if self.lost.is_set():
            raise errors.Unavailable("the connection to the broker is lost")
        scope = asyncio.timeout(timeout_s)
        self._scopes.add(scope)
        try:
            with cancellation_kept():
                async with scope:
                    yield
        except (TimeoutError, nats.errors.Error, OSError) as error:
            if self.lost.is_set() or (isinstance(error, OSError) and not isinstance(error, TimeoutError)):
                raise errors.Unavailable("the connection to the broker is lost") from error
            raise _ours(error) from error
        finally:
            self._scopes.discard(scope)

    def end(self) -> None:
        """Tell everybody who waits that no answer will come."""
        self.lost.set()
        now = asyncio.get_running_loop().time()
        for scope in tuple(self._scopes):
            if not scope.expired():
                scope.reschedule(now)


async def close(client: Client) -> None:
    """Close to the end, also when cancelled: nats-py takes a second attempt at a half-closed client for done."""
    closing = asyncio.ensure_future(client.close())
    try:
        await asyncio.wait({closing}, timeout=2.0)
    except asyncio.CancelledError:
        await asyncio.wait({closing}, timeout=2.0)
        raise
    finally:
        closing.cancel()
        if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
            log.debug("closing a connection to the broker: %r", error)


def _ours(error: BaseException) -> errors.EsperError:
    """A nats-py error as the error it means to a caller of the bus."""
    match error:
        case nats.js.errors.APIError() if getattr(error, "err_code", None) in _FULL:  # errors of a key have no code
            return errors.Exhausted(f"the broker has no room: {error.description}")
        case nats.js.errors.NotFoundError():
            return errors.NotFound(str(error))
        case nats.js.errors.ServiceUnavailableError() | nats.js.errors.NoStreamResponseError():
            return errors.Unavailable(f"JetStream does not answer: {error}")
        case nats.errors.NoRespondersError():
            return errors.Unavailable("nobody responds")
        case nats.js.errors.APIError():
            return errors.PreconditionFailed(f"the broker refused: {error}")
        case nats.errors.MaxPayloadError():
            return errors.Exhausted("the bus message is larger than the broker takes")
        case TimeoutError():
            return errors.DeadlineExceeded("the broker did not answer in time")
        case _:
            return errors.Unavailable(f"the broker is away: {error}")


# Error codes of the JetStream API: insufficient resources, stream message and byte limits, storage.
_FULL = frozenset({10023, 10047, 10077, 10028, 10002})
