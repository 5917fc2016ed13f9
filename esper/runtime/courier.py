"""The courier: the training process's one thread that talks to the runtime.

It sleeps until woken. The training thread appends to a bounded queue and, at decision
points, takes what has arrived; it never waits for the courier, but in a deterministic
run. A lost line is opened again with back-off, and what was not acknowledged is sent
again, and so are jobs without a result: the runtime may be a new one. Readings of health
and time are dropped first when the queue is full, and counted.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import grpc

from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2, trainer_pb2_grpc
from esper.blueprint.interface import Interface
from esper.errors import Conflict, DeadlineExceeded, EsperError, Exhausted, InvalidRequest, Unauthenticated, Unavailable
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import SeedId
from esper.rpc.client import open_channel
from esper.runtime.waker import Waker
from esper.tolaria.line import Incoming, Loaded, Message

log = logging.getLogger(__name__)

START_S = 30.0
# How long the courier, in the middle of its own work, may keep the interpreter from a training step that wants it.
# Python's default is 5 ms, longer than many a step. It holds for the whole process.
SWITCH_S = 0.0005
MAX_UNSENT = 10_000
MAX_BACKOFF_S = 2.0
MAX_NOTE = 4096  # characters, as the contract has it
# Kinds of message that may be lost when nobody listens for long.
_DROPPABLE = ("health", "performance", "progress")
# Errors that trying again does not mend.
_FATAL = (Conflict, InvalidRequest, Unauthenticated)


# Gets a kernel ready to run at an interface: fetched, verified, built, warm.
LoadKernel = Callable[[str, Interface], Coroutine[Any, Any, Kernel]]
Answer = TypeVar("Answer")


class Courier:
    """A tolaria Line to a runtime at `address`.

    `load` is awaited on the courier's thread.
    """

    def __init__(self, address: str, token: str | None, hello: trainer_pb2.Hello) -> None:
        self.address = address
        self.token = token
        first = trainer_pb2.AttachRequest(hello=hello)  # a copy: what is said of it later must be in the message
        self.hello = first.hello
        self.hello.session = self.hello.session or secrets.token_hex(8)
        self.dropped = 0
        self.connected = threading.Event()
        self.welcome: trainer_pb2.Welcome | None = None
        self.load: LoadKernel | None = None
        self._loads: set[asyncio.Task[None]] = set()
        self._sequence = 0
        self._thunks: deque[Message | Callable[[], None]] = deque()
        self._unacknowledged: deque[trainer_pb2.AttachRequest] = deque()
        self._line = 0  # lines opened and lost so far
        self._sent = 0  # of the unacknowledged, on this line
        self._jobs: dict[str, nursery_pb2.Job] = {}  # without a last result
        self._over = False  # the runtime has the goodbye
        self._arrived: deque[Incoming] = deque()
        self._condition = threading.Condition()
        self._fatal: EsperError | None = None
        self._closing = False
        self._held = False  # what is posted goes out later, together
        self._channel: grpc.aio.Channel | None = None
        self._loop = asyncio.new_event_loop()
        self._wake: asyncio.Event | None = None
        self._waker: Waker | None = None
        self._thread = threading.Thread(target=self._run, name="esper-courier", daemon=True)
        self._enqueue(first)

    def start(self, timeout_s: float = START_S) -> None:
        """Start the thread and wait for the first welcome. Raises Unavailable, or what the runtime refused it for."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        self._waker = Waker()
        self._thread.start()
        if not self.connected.wait(timeout_s):
            self.close(timeout_s=0.0)
            raise self._fatal or Unavailable(
                f"no runtime answers at {self.address} within {timeout_s:g} s; start one with `esper up`"
            )
        if self._fatal is not None:
            raise self._fatal

    def channel(self) -> grpc.aio.Channel:
        """The open channel, for calls made on the courier's thread. Raises Unavailable while the line is down."""
        if self._channel is None:
            raise Unavailable(f"the line to {self.address} is down")
        return self._channel

    def call(self, work: Coroutine[Any, Any, Answer]) -> concurrent.futures.Future[Answer]:
        """Do some work of another thread's on the courier's."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # The training thread's side

    def post(self, make: Message) -> None:
        if len(self._thunks) >= MAX_UNSENT:
            raise Exhausted(f"{MAX_UNSENT} messages wait for the courier, the limit; its thread is stuck or starved")
        self._thunks.append(make)
        self._rouse_unless_held()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._rouse_unless_held()

    def load_kernel(self, seed: SeedId, artifact_id: str, interface: Interface) -> None:
        self._thunks.append(lambda: self._start_load(seed, artifact_id, interface))
        self._rouse_unless_held()

    def collect(self) -> list[Incoming]:
        if not self._arrived:
            if self._fatal is not None:
                raise self._fatal
            return []
        taken = []
        while self._arrived:
            taken.append(self._arrived.popleft())
        return taken

    def wait(self, done: Callable[[], bool], limit_s: float = 600.0) -> None:
        deadline = time.monotonic() + limit_s
        self._rouse()
        while not done():
            if self._fatal is not None:
                raise self._fatal
            with self._condition:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DeadlineExceeded(f"no answer from the runtime at {self.address} within {limit_s:g} s")
                if not self._arrived:
                    self._condition.wait(min(left, 1.0))

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what is queued, at most for `timeout_s`, and end the thread."""
        deadline = time.monotonic() + timeout_s
        while self._unsaid() and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.01)
        self._closing = True
        self._rouse()
        if self._thread.is_alive():
            self._thread.join(max(1.0, timeout_s))
        if self._waker is not None and not self._thread.is_alive():
            self._waker.close()

    def _unsaid(self) -> bool:
        """Whether something is left that the runtime does not have. Hello stays in the queue for the next line."""
        return bool(self._thunks) or len(self._unacknowledged) > 1

    def _rouse_unless_held(self) -> None:
        if self._thunks and not self._held:
            self._rouse()

    def _rouse(self) -> None:
        if self._waker is not None:
            self._waker.wake()

    # The courier's side

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except (Exception, asyncio.CancelledError) as error:
            log.exception("the courier's thread failed")
            self._fatal = EsperError(f"the line to {self.address} failed: {type(error).__name__}: {error}")
        finally:
            with self._condition:
                self._condition.notify_all()
            self.connected.set()

    async def _serve(self) -> None:
        self._wake = asyncio.Event()
        assert self._waker is not None
        self._waker.listen(self._loop, self._wake.set)
        backoff_s = 0.05
        while not self._closing and self._fatal is None:
            try:
                if self._over and not self._unsaid():
                    await self._pause()
                    continue
                await self._talk()
                backoff_s = 0.05
            except _FATAL as error:
                self._fatal = error
            except EsperError as error:
                log.info("the line to %s is down: %s", self.address, error)
                await self._work_offline(backoff_s)
                backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)

    async def _talk(self) -> None:
        """One line, from hello to its loss."""
        async with open_channel(self.address, token=self.token) as channel:
            self._sent, self._channel = 0, channel
            self._ask_again()
            stub: Any = trainer_pb2_grpc.TrainerServiceStub(channel)
            replies: AsyncIterator[trainer_pb2.AttachResponse] = stub.Attach(self._requests(self._line))
            try:
                async for reply in replies:
                    self._take(reply)
                    if self._closing and not self._unsaid():
                        return
            finally:
                self._channel = None
                self._line += 1

    async def _requests(self, line: int) -> AsyncIterator[trainer_pb2.AttachRequest]:
        """Hello first, then what is unacknowledged, then what comes.

        gRPC goes on asking after the line is lost; what it were given then would be missing on the next one.
        """
        while self._line == line and (not self._closing or self._thunks):
            self._prepare()
            while self._line == line and self._sent < len(self._unacknowledged):
                request = self._unacknowledged[self._sent]
                self._sent += 1
                yield request
            await self._pause()

    async def _pause(self) -> None:
        """Until woken, unless there is work."""
        assert self._wake is not None
        if not self._thunks and not self._closing:
            self._wake.clear()
            await self._wake.wait()

    async def _work_offline(self, seconds: float) -> None:
        """While the line is down: files are still written and kernels in the cache still load."""
        assert self._wake is not None
        until = self._loop.time() + seconds
        while not self._closing and (left := until - self._loop.time()) > 0:
            self._prepare()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)

    def _prepare(self) -> None:
        """Do the queued work; messages it makes are numbered and kept until acknowledged."""
        while self._thunks:
            work = self._thunks.popleft()
            try:
                made = work()
            except Exception as error:  # a full disk, mostly: training goes on without what was to be written
                log.warning("what was to be written or sent is lost", exc_info=True)
                text = f"what was to be written or sent is lost: {type(error).__name__}: {error}"[:MAX_NOTE]
                made = trainer_pb2.AttachRequest(note=trainer_pb2.Note(level="error", source="courier", text=text))
            if made is not None:
                self._enqueue(made)

    def _ask_again(self) -> None:
        """Of a runtime that was restarted, for the jobs it no longer knows; any other takes the same job once."""
        under_way = {message.job.job_id for message in self._unacknowledged if message.HasField("job")}
        for job in [job for job_id, job in self._jobs.items() if job_id not in under_way]:
            self._enqueue(trainer_pb2.AttachRequest(job=job))

    def _enqueue(self, message: trainer_pb2.AttachRequest) -> None:
        self._sequence += 1
        message.sequence = self._sequence
        if message.HasField("job"):
            self._jobs[message.job.job_id] = message.job
        elif message.HasField("cancelled_job"):
            self._jobs.pop(message.cancelled_job, None)
        self._unacknowledged.append(message)
        if len(self._unacknowledged) > MAX_UNSENT:
            self._drop_one()

    def _drop_one(self) -> None:
        for index, message in enumerate(self._unacknowledged):
            if message.WhichOneof("message") in _DROPPABLE:
                del self._unacknowledged[index]
                self._sent -= index < self._sent
                self.dropped += 1
                return
        self._fatal = Exhausted(f"{MAX_UNSENT} messages that must not be lost wait for the runtime at {self.address}")

    def _take(self, reply: trainer_pb2.AttachResponse) -> None:
        kind = reply.WhichOneof("message")
        if kind == "acknowledged":
            while len(self._unacknowledged) > 1 and self._unacknowledged[1].sequence <= reply.acknowledged:
                self._over |= self._unacknowledged[1].HasField("goodbye")
                del self._unacknowledged[1]  # hello stays: every line begins with it
                self._sent -= 1
        elif kind == "welcome":
            self.welcome = reply.welcome
            self.connected.set()
        elif kind == "command":
            self.hello.last_command_sequence = reply.command.sequence
            self._arrive(reply.command)
        elif kind == "result":
            if not reply.result.twin.partial:
                self._jobs.pop(reply.result.job_id, None)
            self._arrive(reply.result)
        elif kind == "decision":
            self._arrive(reply.decision)

    def _arrive(self, item: Incoming) -> None:
        with self._condition:
            self._arrived.append(item)
            self._condition.notify_all()

    def _start_load(self, seed: SeedId, artifact_id: str, interface: Interface) -> None:
        task = self._loop.create_task(self._load(seed, artifact_id, interface))
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _load(self, seed: SeedId, artifact_id: str, interface: Interface) -> None:
        if self.load is None:
            failure = "this session has no library to load kernels from"
            return self._arrive(Loaded(seed, artifact_id, None, failure))
        try:
            self._arrive(Loaded(seed, artifact_id, await self.load(artifact_id, interface)))
        except EsperError as error:
            self._arrive(Loaded.failed(seed, artifact_id, error))
