"""The runtime's end of every trainer's line.

What a trainer says goes on: jobs to the nursery, checkpoints to disk, everything else to
whoever listens. What is for a trainer comes back on its line. A message is acknowledged
when it is safe; the same message again acts once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.errors import Conflict, InvalidRequest, NotFound
from esper.tolaria.checkpoint import CheckpointStore


class Outside(Protocol):
    """Where a trainer's messages go and what is for it comes from; runtime gives one per gateway."""

    async def hello(self, hello: trainer_pb2.Hello) -> None:
        """A run begins or goes on: make its task and kernels ready."""
        ...

    async def tell(self, run_id: str, key: str, message: trainer_pb2.AttachRequest) -> None:
        """Publish one message; the same key again is the same message. Returns when it is stored."""
        ...

    def commands(self, run_id: str, after: int) -> AsyncIterator[trainer_pb2.AttachResponse]:
        """Commands and decisions for a run after a sequence, then live ones."""
        ...

    def results(self, run_id: str) -> AsyncIterator[nursery_pb2.JobResult]:
        """The nursery's results for a run."""
        ...

    async def submit(self, job: nursery_pb2.Job, /) -> None:
        """Queue a nursery job."""
        ...

    async def cancel(self, job_id: str, /) -> None:
        """Stop a nursery job; one that is done or unknown is left alone."""
        ...


@dataclass(slots=True)
class RunDesk:
    """One run as the gateway knows it."""

    run: trainer_pb2.Run
    hello: trainer_pb2.Hello
    session: str = ""  # of the attached trainer; "" while none is
    last_sequence: int = 0
    state: state_pb2.SystemStatePacket | None = None
    outbox: asyncio.Queue[trainer_pb2.AttachResponse] = field(default_factory=asyncio.Queue)


class Gateway:
    """All runs of this runtime."""

    def __init__(self, outside: Outside, forge_keys: list[bytes], evaluation_keys: list[bytes]) -> None:
        self.outside = outside
        self.forge_keys = forge_keys
        self.evaluation_keys = evaluation_keys
        self.desks: dict[str, RunDesk] = {}

    def desk(self, run_id: str) -> RunDesk:
        """Raises NotFound for a run that never attached here."""
        if run_id not in self.desks:
            raise NotFound(f"no run {run_id!r} is known to this runtime; known: {', '.join(self.desks) or 'none'}")
        return self.desks[run_id]

    async def attach(
        self, requests: AsyncIterator[trainer_pb2.AttachRequest]
    ) -> AsyncIterator[trainer_pb2.AttachResponse]:
        """Serve one trainer's line until it says goodbye or is gone.

        Raises InvalidRequest where the first message is not HELLO, Conflict while another
        process is attached as this run, or its id was another run's and it does not resume that one.
        """
        first = await anext(requests, None)
        if first is None or not first.HasField("hello"):
            raise InvalidRequest("the first message of a line must be hello")
        desk = await self._open(first)
        outbox = desk.outbox
        tasks = [
            asyncio.create_task(self._listen(desk, requests)),
            asyncio.create_task(
                _forward(desk, self.outside.commands(desk.run.run_id, first.hello.last_command_sequence))
            ),
            asyncio.create_task(_forward(desk, _as_responses(self.outside.results(desk.run.run_id)))),
        ]
        try:
            yield self._welcome()
            yield trainer_pb2.AttachResponse(acknowledged=first.sequence)
            async for response in _until(tasks, outbox):
                yield response
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # a trainer that is killed ends its messages first, and cancels the call while this waits
                if desk.outbox is outbox:  # otherwise the trainer is back on a new line already
                    self._closed(desk)

    async def _open(self, first: trainer_pb2.AttachRequest) -> RunDesk:
        hello = first.hello
        desk = self.desks.get(hello.run_id)
        if desk is not None and desk.session not in ("", hello.session):
            raise Conflict(
                f"run {hello.run_id!r} is attached by another process; stop that one, or choose another run id"
            )
        if desk is not None and desk.hello.session != hello.session and not hello.resumed:
            raise Conflict(
                f"run id {hello.run_id!r} was used before on this runtime, and what that run was told would be heard "
                f"again; choose another id, or go on with it: --resume {hello.run_id}"
            )
        if desk is None or desk.hello.session != hello.session:
            created = desk.run.create_time if desk is not None else None
            desk = RunDesk(_new_run(hello), hello)
            if created is not None:
                desk.run.create_time.CopyFrom(created)
            self.desks[hello.run_id] = desk
        desk.session, desk.outbox = hello.session, asyncio.Queue()
        desk.run.state = trainer_pb2.Run.STATE_TRAINING
        await self.outside.hello(hello)
        await self._handle(desk, first)
        return desk

    def _welcome(self) -> trainer_pb2.AttachResponse:
        welcome = trainer_pb2.Welcome(forge_keys=self.forge_keys, evaluation_keys=self.evaluation_keys)
        return trainer_pb2.AttachResponse(welcome=welcome)

    async def _listen(self, desk: RunDesk, requests: AsyncIterator[trainer_pb2.AttachRequest]) -> None:
        async for request in requests:
            await self._handle(desk, request)
            desk.outbox.put_nowait(trainer_pb2.AttachResponse(acknowledged=request.sequence))
            if request.HasField("goodbye"):
                return

    async def _handle(self, desk: RunDesk, request: trainer_pb2.AttachRequest) -> None:
        """Let one message act, once."""
        if request.sequence <= desk.last_sequence:
            return
        kind = request.WhichOneof("message")
        if kind == "job":
            await self.outside.submit(request.job)
        elif kind == "cancelled_job":
            await self.outside.cancel(request.cancelled_job)
        elif kind == "checkpoint":
            await self._checkpoint(desk, request.checkpoint)
        _note(desk, request)
        await self.outside.tell(desk.run.run_id, f"{desk.hello.session}-{request.sequence}", request)
        desk.last_sequence = request.sequence

    async def _checkpoint(self, desk: RunDesk, request: trainer_pb2.CheckpointRequest) -> None:
        """Copy the tensors to the run's directory, away from the event loop."""
        store = CheckpointStore(Path(desk.run.directory) / "checkpoints")
        note = await asyncio.to_thread(store.write_spooled, request.manifest)
        if note is not None:
            key = f"{desk.hello.session}-checkpoint-{request.manifest.step}"
            await self.outside.tell(desk.run.run_id, key, trainer_pb2.AttachRequest(note=note))

    def _closed(self, desk: RunDesk) -> None:
        desk.session = ""
        if desk.run.state == trainer_pb2.Run.STATE_TRAINING:
            desk.run.state = trainer_pb2.Run.STATE_DETACHED


def _new_run(hello: trainer_pb2.Hello) -> trainer_pb2.Run:
    run = trainer_pb2.Run(
        run_id=hello.run_id,
        state=trainer_pb2.Run.STATE_TRAINING,
        task_name=hello.task_name,
        policy=hello.settings.policy,
        total_steps=hello.total_steps,
        directory=hello.directory,
    )
    run.create_time.GetCurrentTime()
    return run


def _note(desk: RunDesk, request: trainer_pb2.AttachRequest) -> None:
    """Keep what lists and lookups show."""
    kind = request.WhichOneof("message")
    if kind == "state":
        desk.state = request.state
        desk.run.step, desk.run.train_loss = request.state.step, request.state.train_loss
        desk.run.fossils = sum(seed.state == 9 for seed in request.state.seeds)
    elif kind == "goodbye":
        desk.run.state = _state_after(request.goodbye)


def _state_after(goodbye: trainer_pb2.Goodbye) -> trainer_pb2.Run.State.ValueType:
    states = trainer_pb2.Run
    if goodbye.stopped:
        return states.STATE_STOPPED
    return states.STATE_COMPLETED if goodbye.completed else states.STATE_FAILED


async def _forward(desk: RunDesk, responses: AsyncIterator[trainer_pb2.AttachResponse]) -> None:
    async for response in responses:
        desk.outbox.put_nowait(response)


async def _as_responses(results: AsyncIterator[nursery_pb2.JobResult]) -> AsyncIterator[trainer_pb2.AttachResponse]:
    async for result in results:
        yield trainer_pb2.AttachResponse(result=result)


async def _until(
    tasks: list[asyncio.Task[None]], outbox: asyncio.Queue[trainer_pb2.AttachResponse]
) -> AsyncIterator[trainer_pb2.AttachResponse]:
    """What is in the outbox until the first task ends; what that one raised is raised."""
    while True:
        getting = asyncio.create_task(outbox.get())
        await asyncio.wait([getting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            yield getting.result()
            continue
        getting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await getting
        for task in tasks:
            if task.done():
                task.result()
        while not outbox.empty():
            yield outbox.get_nowait()
        return
