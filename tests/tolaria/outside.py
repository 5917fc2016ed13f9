"""What is beyond a gateway, as a test sees it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2 as pb


@dataclass
class Beyond:
    """Keeps what it is told; says what a test puts in its queues."""

    hellos: list = field(default_factory=list)
    told: list = field(default_factory=list)
    jobs: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)
    after: list = field(default_factory=list)  # where each line asked commands to begin
    for_trainer: asyncio.Queue = field(default_factory=asyncio.Queue)
    done: asyncio.Queue = field(default_factory=asyncio.Queue)

    async def hello(self, hello: pb.Hello) -> None:
        self.hellos.append(hello)

    async def tell(self, run_id: str, key: str, message: pb.AttachRequest) -> None:
        self.told.append((run_id, key, message))

    async def commands(self, run_id: str, after: int) -> AsyncIterator[pb.AttachResponse]:
        self.after.append(after)
        while True:
            yield await self.for_trainer.get()

    async def results(self, run_id: str) -> AsyncIterator[nursery_pb2.JobResult]:
        while True:
            yield await self.done.get()

    async def submit(self, job: nursery_pb2.Job, /) -> None:
        self.jobs.append(job)

    async def cancel(self, job_id: str, /) -> None:
        self.cancelled.append(job_id)

    def kinds(self) -> list[str | None]:
        return [message.WhichOneof("message") for _, _, message in self.told]


class Trainer:
    """One end of a line: says what it is told to, keeps what it hears."""

    def __init__(self, attach) -> None:
        """`attach`: a gateway's method, or a stub's."""
        self._said: asyncio.Queue = asyncio.Queue()
        self.heard: list[pb.AttachResponse] = []
        self.error: BaseException | None = None
        self._task = asyncio.create_task(self._run(attach))

    def say(self, sequence: int, **message: object) -> None:
        self._said.put_nowait(pb.AttachRequest(sequence=sequence, **message))

    def acknowledged(self) -> list[int]:
        return [m.acknowledged for m in self.heard if m.WhichOneof("message") == "acknowledged"]

    async def until(self, condition) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)

    async def ended(self) -> None:
        await asyncio.wait_for(asyncio.wait([self._task]), 10)

    async def lose(self) -> None:
        """The line is gone without a goodbye."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self, attach) -> None:
        try:
            async for response in attach(self._requests()):
                self.heard.append(response)
        except Exception as error:
            self.error = error

    async def _requests(self) -> AsyncIterator[pb.AttachRequest]:
        while True:
            yield await self._said.get()


def hello(run_id: str = "run-1", *, session: str = "one", directory: str = "", **fields: object) -> pb.Hello:
    return pb.Hello(run_id=run_id, session=session, directory=directory, task_name="digits", total_steps=100, **fields)
