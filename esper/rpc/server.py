"""A grpc.aio server with what every service has: health, reflection, channelz, limits, a graceful stop."""

import asyncio
import errno
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Self

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from esper import errors
from esper.rpc.interceptors import CallObserver, ServiceInterceptor

MAX_MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits of one server.

    `deadline_s`, `stream_deadline_s`: for calls that come without a deadline, with one
    reply and with a stream of replies. `keepalive_s`: shortest pause between a
    client's pings that is not taken for abuse.
    """

    max_message_bytes: int = MAX_MESSAGE_BYTES
    deadline_s: float = 30.0
    stream_deadline_s: float = 86_400.0
    keepalive_s: float = 5.0


class Server:
    """One server on one address.

    async with Server(tokens={token}) as server:
        server.mount(bus_pb2_grpc.add_BusServiceServicer_to_server, BusServicer(bus))
        port = await server.start("127.0.0.1:0")

    One that is not stopped hangs the process: gRPC waits for it when it is collected.
    """

    def __init__(
        self,
        *,
        tokens: Collection[str] | None,
        options: ServerOptions = ServerOptions(),  # noqa: B008  frozen
        observe: CallObserver | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """`tokens`: accepted bearer tokens; None opens every service. `credentials`: None is plain text."""
        stack = ServiceInterceptor(
            tokens=tokens,
            deadline_s=options.deadline_s,
            stream_deadline_s=options.stream_deadline_s,
            observe=observe,
        )
        self._server = grpc.aio.server(interceptors=[stack], options=_channel_arguments(options))
        self._credentials = credentials
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in grpc-stubs
        self._services: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop(0.0)

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the mounted services, in the order they were mounted."""
        return tuple(self._services)

    def mount(self, add: Callable[[Any, Any], None], servicer: object) -> None:
        """Serve `servicer`; `add` is the generated `add_<Service>Servicer_to_server`. Before `start`."""
        add(servicer, _Recorder(self._server, self._services))

    async def start(self, address: str = "127.0.0.1:0") -> int:
        """Listen on `address` and return the bound port. Mounted services are SERVING.

        Raises Unavailable when the address cannot be bound.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        channelz.add_channelz_servicer(self._server)  # type: ignore[arg-type]  # takes both kinds
        try:
            port = self._bind(address)
        except errors.Unavailable:
            await self._server.stop(None)
            raise
        await self._server.start()
        for name in self._services:
            await self.set_serving(name, True)
        return port

    async def set_serving(self, service: str, serving: bool) -> None:
        """Set what health says of one service; "" is the server as a whole."""
        states = health_pb2.HealthCheckResponse
        await self._health.set(service, states.SERVING if serving else states.NOT_SERVING)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Say NOT_SERVING, refuse new calls, give calls in flight `grace_s` seconds, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Return when the server has stopped."""
        await self._server.wait_for_termination()

    def _bind(self, address: str) -> int:
        try:
            if self._credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise errors.Unavailable(f"cannot listen on {address}: {why_not_bound(address)}") from error


def why_not_bound(address: str) -> str:
    """Why HOST:PORT cannot be listened on, and the way out. gRPC tells a log and not its caller."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, ValueError) as error:
        return f"{host} is no address ({error}); choose one of this machine's, e.g. 127.0.0.1"
    with socket.socket(found[0], found[1]) as tried:
        try:
            tried.bind(found[4])
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return f"{host} is not an address of this machine; choose one that is, e.g. 127.0.0.1"
    return (
        f"port {port} is in use or not ours to bind; stop the process that holds it, or choose another port "
        "(0 takes a free one)"
    )


async def serve_until(server: Server, stop: asyncio.Event, grace_s: float = 5.0) -> None:
    """Keep a started server until `stop` is set, then stop it."""
    await stop.wait()
    await server.stop(grace_s)


class _Recorder:
    """The server as generated code sees it; notes the name of each service that is added."""

    def __init__(self, server: grpc.aio.Server, names: list[str]) -> None:
        self._server = server
        self._names = names

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        handlers = tuple(handlers)
        self._names.extend(handler.service_name() for handler in handlers)
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]


def _channel_arguments(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        # Two servers on one port would share its calls at random, and neither would say so.
        ("grpc.so_reuseport", 0),
        ("grpc.enable_channelz", 1),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(options.keepalive_s * 1000)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(options.keepalive_s * 1000)),
    ]
