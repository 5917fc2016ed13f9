"""A runtime's end of a trainer's line that does as a test says, and a courier to it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any, Self

from esper.api.tolaria.v1 import trainer_pb2, trainer_pb2_grpc
from esper.rpc.server import Server
from esper.runtime.courier import Courier

TOKEN = "right-token"
Request = trainer_pb2.AttachRequest
Response = trainer_pb2.AttachResponse


class Peer(trainer_pb2_grpc.TrainerServiceServicer):
    """Notes what each line says. `answer(request)` gives the replies to one message; None drops the line."""

    def __init__(self) -> None:
        self.lines: list[list[Request]] = []
        self.answer: Callable[[Request], list[Response] | None] = acknowledge
        self.refusal: Exception | None = None

    async def Attach(self, request_iterator: AsyncIterator[Request], context: Any) -> AsyncIterator[Response]:
        if self.refusal is not None:
            raise self.refusal
        line: list[Request] = []
        self.lines.append(line)
        yield Response(welcome=trainer_pb2.Welcome())
        async for request in request_iterator:
            line.append(request)
            replies = self.answer(request)
            if replies is None:
                return
            for reply in replies:
                yield reply
            if request.HasField("goodbye"):
                return

    def heard(self, line: int = -1) -> list[int]:
        """Numbers of the messages of one line, hello left out."""
        return [request.sequence for request in self.lines[line] if not request.HasField("hello")]

    def texts(self) -> list[str]:
        """Notes, over all lines, each once, by number."""
        notes = {r.sequence: r.note.text for line in self.lines for r in line if r.HasField("note")}
        return [notes[number] for number in sorted(notes)]


def acknowledge(request: Request) -> list[Response]:
    return [Response(acknowledged=request.sequence)]


class Host:
    """Serves a peer from a thread of its own; can be stopped and started again on the same port."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server: Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *error: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def up(self) -> None:
        self._do(self._up())

    def down(self) -> None:
        self._do(self._down())

    async def _up(self) -> None:
        self._server = Server(tokens={TOKEN})
        self._server.mount(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, self.peer)
        self.port = await self._server.start(f"127.0.0.1:{self.port}")

    async def _down(self) -> None:
        if self._server is not None:
            await self._server.stop(0.0)
            self._server = None

    def _do(self, work: Any) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result(30)


def courier_to(address: str, token: str = TOKEN) -> Courier:
    return Courier(address, token, trainer_pb2.Hello(run_id="run-1"))


def note(text: str) -> Callable[[], Request]:
    return lambda: Request(note=trainer_pb2.Note(level="info", source="test", text=text))


def progress(step: int) -> Callable[[], Request]:
    return lambda: Request(progress=trainer_pb2.Progress(step=step))
