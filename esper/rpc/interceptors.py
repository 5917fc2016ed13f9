"""What stands between the wire and every servicer: authentication, validation, deadline, errors, metrics.

One interceptor does all of it, because each one more would wrap every call once more.
Servicers raise EsperError and know nothing of statuses. Stream servicers read the
request iterator they are handed, not `context.read()`, which would skip validation.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from esper import errors
from esper.rpc import deadlines
from esper.rpc.auth import OPEN_SERVICES, authenticate
from esper.rpc.status import bug_to_rpc, to_rpc
from esper.rpc.validation import validate

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_OWN_PREFIX = "esper."


class CallObserver(Protocol):
    """Told of every finished call."""

    def __call__(self, service: str, method: str, code: str, seconds: float) -> None:
        """`code` is the status code's name, e.g. "OK"; `seconds` is wall time inside the server."""


@dataclass(frozen=True, slots=True)
class _Method:
    service: str
    name: str
    deadline_s: float


class ServiceInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """The whole stack.

    `tokens`: the accepted bearer tokens; None opens every service.
    `deadline_s`, `stream_deadline_s`: limits of a call that comes without a deadline,
    for calls with one reply and for those with a stream of replies.
    """

    def __init__(
        self,
        *,
        tokens: Collection[str] | None,
        deadline_s: float = 30.0,
        stream_deadline_s: float = 86_400.0,
        observe: CallObserver | None = None,
    ) -> None:
        self._tokens = tokens
        self._deadline_s = deadline_s
        self._stream_deadline_s = stream_deadline_s
        self._observe = observe
        self._handlers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """gRPC's hook: the wrapped handler of the method, made once per method."""
        if (wrapped := self._handlers.get(details.method)) is not None:
            return wrapped
        handler = await continuation(details)
        if handler is None:
            return None
        _, service, name = details.method.split("/", 2)
        limit_s = self._stream_deadline_s if handler.response_streaming else self._deadline_s
        wrapped = self._wrap(handler, _Method(service, name, limit_s))
        self._handlers[details.method] = wrapped
        return wrapped

    def _wrap(self, handler: Any, method: _Method) -> Any:
        behaviour, make = _behaviour(handler)
        answer = _stream_answer if handler.response_streaming else _unary_answer
        check = method.service.startswith(_OWN_PREFIX)

        async def serve(request: Any, context: Context) -> Any:
            async def call() -> Any:
                self._admit(method, context)
                if handler.request_streaming:
                    return await answer(behaviour, _checked_stream(request, check), context)
                _check(request, check)
                return await answer(behaviour, request, context)

            return await self._run(method, context, call)

        return make(serve, _tolerant(handler.request_deserializer), handler.response_serializer)

    def _admit(self, method: _Method, context: Context) -> None:
        if self._tokens is not None and method.service not in OPEN_SERVICES:
            authenticate(context.invocation_metadata() or (), self._tokens)

    async def _run(self, method: _Method, context: Context, call: Callable[[], Awaitable[Any]]) -> Any:
        """Await `call` and end the context with the right status when it raises."""
        started = time.perf_counter()
        code = "OK"
        try:
            return await _within_deadline(method, context, call)
        except asyncio.CancelledError:
            left = context.time_remaining()
            code = "DEADLINE_EXCEEDED" if left is not None and left <= 0 else "CANCELLED"
            raise
        except Exception as error:
            status = _status(error, method, context)
            if status is None:
                code = _code_name(context)
                raise
            code = status.code.name
            await context.abort_with_status(status)  # type: ignore[attr-defined]  # missing in grpc-stubs
        finally:
            if self._observe is not None:
                self._observe(method.service, method.name, code, time.perf_counter() - started)


def _status(error: Exception, method: _Method, context: Context) -> Any:
    """What to end the call with; None where the servicer has ended it itself."""
    if isinstance(error, grpc.aio.AbortError):
        return None
    if isinstance(error, errors.EsperError):
        return to_rpc(error)
    if isinstance(error, NotImplementedError) and _code_name(context) == "UNIMPLEMENTED":
        words = f"{method.service}.{method.name} is not implemented here"
        return to_rpc(errors.EsperError(words), grpc.StatusCode.UNIMPLEMENTED)
    log.error("unexpected error in %s.%s", method.service, method.name, exc_info=error)
    return bug_to_rpc(error)


def _code_name(context: Context) -> str:
    """The code the servicer has set; gRPC keeps it as a number or as the enum, by how it was set."""
    code: Any = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _CODE_NAMES.get(code, "UNKNOWN")


async def _within_deadline(method: _Method, context: Context, call: Callable[[], Awaitable[Any]]) -> Any:
    """Await `call`; where the caller set no deadline, for at most the server's own limit."""
    if context.time_remaining() is not None:
        return await call()
    deadlines.imposed.set(time.monotonic() + method.deadline_s)
    limit = asyncio.timeout(method.deadline_s)
    try:
        async with limit:
            return await call()
    except TimeoutError:
        if not limit.expired():
            raise
        words = f"{method.service}.{method.name} took longer than the server's limit of {method.deadline_s:g} s"
        raise errors.DeadlineExceeded(words + " for calls without a deadline; send one") from None


async def _unary_answer(behaviour: Any, request: Any, context: Context) -> Any:
    answer = behaviour(request, context)
    return await answer if inspect.isawaitable(answer) else answer


async def _stream_answer(behaviour: Any, request: Any, context: Context) -> None:
    """Send what the servicer yields; one that writes to the context itself is only awaited."""
    answer = behaviour(request, context)
    if not hasattr(answer, "__aiter__"):
        await answer
        return
    # Closed here, not at garbage collection: a cancelled caller must free what the servicer holds now.
    async with contextlib.aclosing(answer) as replies:
        async for reply in replies:
            await context.write(reply)


class _Undecodable:
    """Stands for bytes that are not the method's request message."""


def _tolerant(deserialise: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """gRPC answers a deserialiser's exception with its text; this one is told apart later instead."""

    def read(raw: bytes) -> Any:
        try:
            return deserialise(raw)
        except DecodeError:
            return _Undecodable()

    return read


def _check(request: Any, rules: bool) -> None:
    if isinstance(request, _Undecodable):
        raise errors.InvalidRequest("the bytes sent are not the method's request message")
    if rules:
        validate(request)


async def _checked_stream(requests: AsyncIterable[Any], rules: bool) -> AsyncIterator[Any]:
    async for request in requests:
        _check(request, rules)
        yield request


def _behaviour(handler: Any) -> tuple[Any, Any]:
    """The servicer's method in `handler`, and the function that makes such a handler."""
    kinds = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    return kinds[handler.request_streaming, handler.response_streaming]
