"""A server on a free port with scripted servicers, and a channel to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from esper.api.oona.v1 import bus_pb2, bus_pb2_grpc
from esper.api.tolaria.v1 import trainer_pb2, trainer_pb2_grpc
from esper.api.urza.v1 import library_pb2, library_pb2_grpc
from esper.rpc.client import ChannelOptions, open_channel
from esper.rpc.server import Server, ServerOptions

TOKEN = "right-token"


class Script:
    """What the servicers do: each test sets the one behaviour it needs."""

    def __init__(self) -> None:
        self.unary: Callable[[Any, Any], Awaitable[Any]] | None = None
        self.stream_out: Callable[[Any, Any], AsyncIterator[Any]] | None = None
        self.stream_in: Callable[[Any, Any], Awaitable[Any]] | None = None
        self.both: Callable[[Any, Any], AsyncIterator[Any]] | None = None


class Bus(bus_pb2_grpc.BusServiceServicer):
    """unary-unary and unary-stream."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def ListStreams(self, request, context):
        assert self._script.unary is not None
        return await self._script.unary(request, context)

    async def Publish(self, request, context):
        assert self._script.unary is not None
        return await self._script.unary(request, context)

    async def Subscribe(self, request, context):
        assert self._script.stream_out is not None
        async for reply in self._script.stream_out(request, context):
            yield reply


class Library(library_pb2_grpc.LibraryServiceServicer):
    """stream-unary, and a write with a request id."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def CreateKernel(self, request_iterator, context):
        assert self._script.stream_in is not None
        return await self._script.stream_in(request_iterator, context)

    async def SetAlias(self, request, context):
        assert self._script.unary is not None
        return await self._script.unary(request, context)


class Trainer(trainer_pb2_grpc.TrainerServiceServicer):
    """stream-stream."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def Attach(self, request_iterator, context):
        assert self._script.both is not None
        async for reply in self._script.both(request_iterator, context):
            yield reply


class Stubs:
    """A channel's stubs, and the server behind it."""

    def __init__(self, server: Server, port: int, channel: Any) -> None:
        self.server = server
        self.port = port
        self.channel = channel
        self.bus = bus_pb2_grpc.BusServiceStub(channel)
        self.library = library_pb2_grpc.LibraryServiceStub(channel)
        self.trainer = trainer_pb2_grpc.TrainerServiceStub(channel)


@contextlib.asynccontextmanager
async def serving(
    script: Script,
    *,
    tokens: set[str] | None = None,
    token: str | None = None,
    options: ServerOptions | None = None,
    channel_options: ChannelOptions | None = None,
    observe: Any = None,
) -> AsyncIterator[Stubs]:
    server = Server(tokens=tokens, options=options or ServerOptions(), observe=observe)
    server.mount(bus_pb2_grpc.add_BusServiceServicer_to_server, Bus(script))
    server.mount(library_pb2_grpc.add_LibraryServiceServicer_to_server, Library(script))
    server.mount(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, Trainer(script))
    port = await server.start("127.0.0.1:0")
    channel = open_channel(f"127.0.0.1:{port}", token=token, options=channel_options or ChannelOptions())
    try:
        yield Stubs(server, port, channel)
    finally:
        await channel.close()
        await server.stop(grace_s=0)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def stubs(script: Script) -> AsyncIterator[Stubs]:
    async with serving(script) as started:
        yield started


def answering(reply: Any) -> Callable[[Any, Any], Awaitable[Any]]:
    async def unary(request: Any, context: Any) -> Any:
        return reply

    return unary


def raising(error: BaseException) -> Callable[[Any, Any], Awaitable[Any]]:
    async def unary(request: Any, context: Any) -> Any:
        raise error

    return unary


def hello(run_id: str = "run-1") -> trainer_pb2.AttachRequest:
    return trainer_pb2.AttachRequest(sequence=1, hello=trainer_pb2.Hello(run_id=run_id, session="s"))


def streams_reply() -> bus_pb2.ListStreamsResponse:
    return bus_pb2.ListStreamsResponse(streams=[bus_pb2.StreamInfo(name="S")])


def alias_reply() -> library_pb2.SetAliasResponse:
    return library_pb2.SetAliasResponse()


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Return when `condition` holds; fail when it does not within `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
