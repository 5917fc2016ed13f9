"""Request and reply over core NATS: nothing is stored, and an answer is for the one who asked."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import nats.errors
from nats.aio.msg import Msg

from esper import errors
from esper.oona import wire
from esper.oona.connection import Line
from esper.oona.envelope import check
from esper.oona.link import Link
from esper.oona.port import Envelope, Handler
from esper.oona.subjects import find, run_token

log = logging.getLogger(__name__)

_ERROR = "Esper-Error"
# Below the prefix but under no stream, which would answer a request with "stored".
_TOKEN = "request"
_QUEUE = "responders"


class Calls:
    """Both ends."""

    def __init__(self, line: Line, prefix: str) -> None:
        self._line = line
        self._prefix = prefix

    def _subject(self, name: str, run_id: str) -> str:
        return f"{self._prefix}.{_TOKEN}.{find(name).name}.{run_token(run_id)}"

    async def request(self, name: str, envelope: Envelope, timeout_s: float) -> Envelope:
        check(name, envelope)
        data = envelope.SerializeToString()
        if len(data) > wire.MAX_BYTES:
            raise errors.Exhausted(f"request {envelope.id!r}: {len(data)} bytes, at most {wire.MAX_BYTES} are allowed")
        link = await self._line.link(timeout_s)
        try:
            async with link.held(timeout_s):
                answer = await link.client.request(self._subject(name, envelope.run_id), data, timeout=timeout_s + 1)
        except errors.DeadlineExceeded as error:
            raise errors.DeadlineExceeded(f"no answer on {name} to {envelope.id!r} within {timeout_s:g} s") from error
        except errors.Unavailable as error:
            if link.lost.is_set():
                raise
            raise errors.Unavailable(
                f"nobody responds on {name} for run {envelope.run_id!r}; is its service running?"
            ) from error
        return _answer(answer)

    @contextlib.asynccontextmanager
    async def respond(self, name: str, handler: Handler, run_id: str) -> AsyncIterator[None]:
        ready = asyncio.Event()
        task = asyncio.create_task(self._serve(self._subject(name, run_id), handler, ready))
        try:
            await ready.wait()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _serve(self, subject: str, handler: Handler, ready: asyncio.Event) -> None:
        try:
            while not self._line.closed:
                with contextlib.suppress(errors.Unavailable, errors.DeadlineExceeded):  # again on the next connection
                    await _serve_on(await self._line.link(), subject, handler, ready)
        finally:
            ready.set()


async def _serve_on(link: Link, subject: str, handler: Handler, ready: asyncio.Event) -> None:
    """Answer each request in a task of its own, for as long as the connection lasts."""
    answering: set[asyncio.Task[None]] = set()

    async def take(message: Msg) -> None:
        task = asyncio.create_task(_respond(link, message, handler))
        answering.add(task)
        task.add_done_callback(answering.discard)

    async with link.held(10.0):
        subscription = await link.client.subscribe(subject, _QUEUE, cb=take)
        # The broker must know of us before `respond` says so. nats-py's ping overtakes what waits to be written; by
        # its answer that is written, and a second ping comes behind it.
        await link.client.flush()
        await link.client.flush()
    ready.set()
    try:
        await link.lost.wait()
    finally:
        with contextlib.suppress(nats.errors.Error):  # the connection is closed, and the subscription with it
            await subscription.unsubscribe()


async def _respond(link: Link, message: Msg, handler: Handler) -> None:
    headers: dict[str, str] | None = None
    try:
        data = (await handler(Envelope.FromString(message.data))).SerializeToString()
    except errors.EsperError as error:
        public = next(cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
        headers, data = {_ERROR: public.__name__}, str(error).encode()
    except Exception as error:
        log.exception("the responder on %s failed", message.subject)
        headers, data = {_ERROR: "EsperError"}, f"the responder failed: {type(error).__name__}".encode()
    try:
        async with link.held(5.0):
            await link.client.publish(message.reply, data, headers=headers)
    except errors.EsperError as error:
        log.warning("an answer on %s is lost: %s", message.subject, error)


def _answer(message: Msg) -> Envelope:
    kind = (message.headers or {}).get(_ERROR)
    if kind is None:
        return Envelope.FromString(message.data)
    cls = getattr(errors, kind, errors.EsperError)
    known = isinstance(cls, type) and issubclass(cls, errors.EsperError)
    raise (cls if known else errors.EsperError)(message.data.decode(errors="replace"))
