"""A grpc.aio channel on which every call has a token, a deadline and typed errors.

    channel = open_channel("127.0.0.1:4747", token=token)
    stub = bus_pb2_grpc.BusServiceStub(channel)
    reply = await stub.Publish(request, timeout=2)

A failed call raises the EsperError its status stands for, never AioRpcError.
"""

import contextlib
import functools
import importlib
import json
import pkgutil
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor

import esper.api
from esper.rpc.auth import bearer
from esper.rpc.server import MAX_MESSAGE_BYTES
from esper.rpc.status import from_rpc

# Methods that may be sent again although the first attempt may have arrived. A write may when it has a request id.
_READ_VERBS = ("Get", "List", "Search", "Verify", "Summarise", "Wait", "Cancel")
_IDEMPOTENT = frozenset({"esper.api.oona.v1.BusService.Publish"})  # by envelope id


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Habits of one channel.

    `deadline_s`, `stream_deadline_s`: of a call that is made without a `timeout`, with
    one reply and with a stream of replies. After `stream_deadline_s` a stream is
    opened again from its position. `attempts`: of an idempotent call while its peer
    is UNAVAILABLE, 2 to 5; 1 switches retries off. `keepalive_s`: pause between pings
    while calls are open.
    """

    deadline_s: float = 10.0
    stream_deadline_s: float = 86_400.0
    max_message_bytes: int = MAX_MESSAGE_BYTES
    attempts: int = 4
    keepalive_s: float = 20.0


def open_channel(
    target: str,
    *,
    token: str | None,
    options: ChannelOptions = ChannelOptions(),  # noqa: B008  frozen
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.aio.Channel:
    """A channel to `target`, e.g. "127.0.0.1:4747". It connects at the first call.

    `token`: sent with every call; None sends none. `credentials`: None is plain text.
    """
    habits = _Habits(target, token, options)
    interceptors: list[Any] = [_UnaryUnary(habits), _UnaryStream(habits), _StreamUnary(habits), _StreamStream(habits)]
    arguments = _channel_arguments(options)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=arguments, interceptors=interceptors)
    return grpc.aio.secure_channel(target, credentials, options=arguments, interceptors=interceptors)


@functools.cache
def service_config(attempts: int) -> str:
    """gRPC service config, as JSON: the idempotent unary methods of esper.api are retried on UNAVAILABLE."""
    if attempts < 2:
        return "{}"
    methods = [m for m in _methods() if _idempotent(m)]
    names = [{"service": m.containing_service.full_name, "method": m.name} for m in methods]
    policy = {
        "maxAttempts": attempts,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


def _methods() -> Iterator[MethodDescriptor]:
    for found in pkgutil.walk_packages(esper.api.__path__, "esper.api."):
        if found.name.endswith("_pb2"):
            descriptor = importlib.import_module(found.name).DESCRIPTOR
            for service in descriptor.services_by_name.values():
                yield from service.methods


def _idempotent(method: MethodDescriptor) -> bool:
    if method.client_streaming or method.server_streaming:
        return False
    repeatable = method.name.startswith(_READ_VERBS) or method.full_name in _IDEMPOTENT
    return repeatable or "request_id" in method.input_type.fields_by_name


def _channel_arguments(options: ChannelOptions) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", service_config(options.attempts)),
        ("grpc.keepalive_time_ms", int(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A restarted peer on the same port is a new peer; do not share the old one's connection state.
        ("grpc.use_local_subchannel_pool", 1),
    ]


class _Habits:
    """What the four interceptors below have in common."""

    def __init__(self, target: str, token: str | None, options: ChannelOptions) -> None:
        self._target = target
        self._options = options
        self._metadata = (bearer(token),) if token is not None else ()

    def details(self, details: Any, streaming: bool) -> grpc.aio.ClientCallDetails:
        """`details` with a token and a deadline."""
        default_s = self._options.stream_deadline_s if streaming else self._options.deadline_s
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._metadata)
        timeout = default_s if details.timeout is None else details.timeout
        return grpc.aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )

    @contextlib.contextmanager
    def typed_errors(self, method: bytes | str) -> Iterator[None]:
        """Raise the EsperError instead of the AioRpcError."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            name = method.decode() if isinstance(method, bytes) else method
            raise from_rpc(error, f"{self._target}{name}") from error

    async def replies(self, call: AsyncIterable[Any], method: bytes | str) -> AsyncIterator[Any]:
        with self.typed_errors(method):
            async for reply in call:
                yield reply


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, habits: _Habits) -> None:
        self._habits = habits

    async def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        with self._habits.typed_errors(details.method):
            return await (await continuation(self._habits.details(details, False), _with_request_id(request)))


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, habits: _Habits) -> None:
        self._habits = habits

    async def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        call = await continuation(self._habits.details(details, True), request)
        return self._habits.replies(call, details.method)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, habits: _Habits) -> None:
        self._habits = habits

    async def intercept_stream_unary(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        call = await continuation(self._habits.details(details, False), requests)
        return _TypedCall(call, self._habits, details.method)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, habits: _Habits) -> None:
        self._habits = habits

    async def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        call = await continuation(self._habits.details(details, True), requests)
        return self._habits.replies(call, details.method)


class _TypedCall:
    """A stream-unary call that is not awaited yet; its error is mapped when it is."""

    def __init__(self, call: Any, habits: _Habits, method: bytes | str) -> None:
        self._call = call
        self._habits = habits
        self._method = method

    def __await__(self) -> Generator[Any, Any, Any]:
        with self._habits.typed_errors(self._method):
            return (yield from self._call.__await__())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def _with_request_id(request: Any) -> Any:
    """A write without a request id gets one, so that a retry of it cannot act twice."""
    if getattr(request, "request_id", None) != "":
        return request
    sent = type(request)()
    sent.CopyFrom(request)
    sent.request_id = uuid.uuid4().hex
    return sent
