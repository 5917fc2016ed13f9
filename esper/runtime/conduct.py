"""`esper demo` and `esper train`: a runtime, a training process, a view, and the controls afterwards."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from esper.api.kasmina.v1 import nursery_pb2
from esper.api.nissa.v1 import observability_pb2, observability_pb2_grpc
from esper.api.oona.v1 import bus_pb2, bus_pb2_grpc
from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import EsperError, NotFound, Unavailable
from esper.oona.envelope import Sender
from esper.oona.subjects import Name
from esper.rpc.client import open_channel
from esper.runtime.began import take_back, way_on
from esper.runtime.clients import NurseryClient
from esper.runtime.controls import control_jobs, count_ends, summarise
from esper.runtime.home import Home
from esper.runtime.launch import Child, find_or_start_runtime, start_trainer
from esper.runtime.platform import now
from esper.runtime.runs import StoredRun, check_resumable, read_run
from esper.runtime.spec import TrainSpec
from esper.runtime.stopping import STOPPED, how_to_go_on
from esper.runtime.view import watch
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.task import load_task
from esper.tolaria.worker import events_of_result

# How long after a training process has ended its goodbye may take to come.
LAST_EVENTS_S = 60.0

# How long after an error a runtime that was lost may still look as if it was there.
LOSS_S = 2.0


def conduct(spec: TrainSpec, *, live: bool, controls: bool) -> int:
    """Train a run in a process of its own and show it. Returns the exit status, STOPPED for a run that was stopped.

    `controls`: afterwards train the same model never grown, and one of the final size.
    Raises Unavailable where runtime or trainer cannot be had or end early, with the end of their log, and
    PreconditionFailed for a run to be resumed that has reached its last step.
    """
    task = load_task(spec.task, spec.arguments, spec.import_paths)
    if spec.resume:
        check_resumable(read_run(Path(spec.directory)), spec.steps or task.steps)
    settings = spec.growth_settings(task.growth)
    spec.budget_settings()
    spec.refuse_taken()
    runtime = find_or_start_runtime(Home(Path(spec.home)))
    trainer = None
    try:
        trainer = start_trainer(spec.write())
        contact = runtime.contact
        stopped = asyncio.run(_accompany(spec, settings, contact.address, contact.token(), trainer, live, controls))
    except asyncio.CancelledError:  # by the second Ctrl-C
        raise KeyboardInterrupt from None
    except EsperError as error:
        if not runtime.is_gone(within_s=LOSS_S):
            raise
        if trainer is not None:
            trainer.stop()
        raise Unavailable(f"{runtime.loss()}, and training with it; {way_on(Path(spec.directory))}") from error
    finally:
        if trainer is not None:
            trainer.stop()
        take_back(spec)
        runtime.leave()
    if stopped is None:
        return 0
    words = how_to_go_on(spec.run_id, Path(spec.directory), stopped, spec.steps or task.steps)
    print(f"esper: {words}", file=sys.stderr)
    return STOPPED


async def _accompany(
    spec: TrainSpec,
    settings: GrowthSettings,
    address: str,
    token: str,
    trainer: Child,
    live: bool,
    controls: bool,
) -> int | None:
    """The step at which the run was stopped; None where it ended."""
    _pass_on_interrupts(trainer)
    async with open_channel(address, token=token) as channel:
        following = Following(spec.run_id, channel, trainer)

        async def conclude() -> None:
            await following.ended.wait()
            if following.stopped:
                return
            run = read_run(Path(spec.directory))
            jobs = control_jobs(run, settings.validate_every_steps) if controls else []
            await _conclude(run, jobs, following, channel)

        await _both(watch(following.events(), live=None if live else False), conclude())
        print(await _report(spec.run_id, channel))
        ends = [event.goodbye.step for event in following.heard if event.HasField("goodbye")]
        return ends[-1] if following.stopped else None


async def _both(*works: Coroutine[Any, Any, object]) -> None:
    """All of them, at once; what one raises ends the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _pass_on_interrupts(trainer: Child) -> None:
    """The first Ctrl-C stops training so that it can go on; a second one, or one after its end, ends this process."""
    loop, caller = asyncio.get_running_loop(), asyncio.current_task()
    assert caller is not None

    def ask() -> None:
        if not trainer.running:
            caller.cancel()
            return
        loop.add_signal_handler(signal.SIGINT, caller.cancel)
        trainer.process.send_signal(signal.SIGTERM)

    with contextlib.suppress(NotImplementedError):
        loop.add_signal_handler(signal.SIGINT, ask)


@dataclass
class Following:
    """A run's events as they come, and whether its training process has ended."""

    run_id: str
    channel: grpc.aio.Channel
    trainer: Child
    heard: list[observability_pb2.RunEvent] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # well: with a result, or stopped

    @property
    def stopped(self) -> bool:
        """Whether training has ended before its last step, as it was asked to."""
        return self.trainer.process.returncode == STOPPED

    async def events(self) -> AsyncIterator[observability_pb2.RunEvent]:
        """Every event until the run is over. Raises Unavailable when the training process was lost."""
        incoming: asyncio.Queue[observability_pb2.RunEvent | Exception | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(_into(incoming, self._read)),
            asyncio.create_task(_into(incoming, self._guard)),
        ]
        self._incoming = incoming
        try:
            while (item := await incoming.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self.heard.append(item)
                yield item
        finally:
            for task in tasks:
                task.cancel()

    async def _read(self) -> None:
        """Events to the end of the log, once training has ended: a resumed run has an earlier end in its log."""
        stub: Any = observability_pb2_grpc.ObservabilityServiceStub(self.channel)
        request = observability_pb2.WatchRunRequest(run_id=self.run_id)
        while True:
            ended = self.ended.is_set()
            with contextlib.suppress(NotFound):
                async for reply in stub.WatchRun(request):
                    self._incoming.put_nowait(reply.event)
                    request.after_position = reply.event.position
                if ended:
                    self._incoming.put_nowait(None)
                    return
            await asyncio.sleep(0.1)

    async def _guard(self) -> None:
        """Notice the end of the training process, and a goodbye that does not come."""
        while self.trainer.running:
            await asyncio.sleep(0.1)
        if self.trainer.process.returncode in (0, STOPPED):
            self.ended.set()
            await asyncio.sleep(LAST_EVENTS_S)
            if not self._said_goodbye():
                raise Unavailable(
                    f"training of run {self.run_id} ended; nothing was heard of its end within {LAST_EVENTS_S:g} s; "
                    f"what it left is in {self.trainer.log.parent}"
                )
            return
        await asyncio.sleep(0.0 if not self.heard else 1.0)  # its goodbye may be on its way
        raise Unavailable(
            f"training of run {self.run_id} ended with {self.trainer.process.returncode}; "
            f"{way_on(self.trainer.log.parent)}\nthe end of {self.trainer.log}:\n{self.trainer.tail()}"
        )

    def _said_goodbye(self) -> bool:
        """Whether the latest beginning that was heard of has its end."""
        kinds = [event.WhichOneof("event") for event in self.heard]
        return next((kind == "goodbye" for kind in reversed(kinds) if kind in ("hello", "goodbye")), False)


async def _into(
    incoming: asyncio.Queue[observability_pb2.RunEvent | Exception | None], work: Callable[[], Awaitable[None]]
) -> None:
    try:
        await work()
    except EsperError as error:
        incoming.put_nowait(error)


async def _conclude(
    run: StoredRun, jobs: list[nursery_pb2.Job], following: Following, channel: grpc.aio.Channel
) -> None:
    """Train the controls, tell of their losses, and sum up."""
    results = await _controls(jobs, run.run_id, channel)
    failures = [
        observability_pb2.RunEvent(
            run_id=run.run_id,
            time=now(),
            note=trainer_pb2.Note(level="error", text=f"{result.control_run.label} failed: {result.failure.message}"),
        )
        for result in results
        if result.failure.code
    ]
    summary = summarise(run, results, count_ends(run.run_id, following.heard), now())
    events = [event for result in results for event in events_of_result(result)]
    bus: Any = bus_pb2_grpc.BusServiceStub(channel)
    sender = Sender("esper")
    for event in [*events, *failures, summary]:
        envelope = sender.seal(event, run_id=run.run_id)
        await bus.Publish(bus_pb2.PublishRequest(name=Name.EPOCH, envelope=envelope))


async def _controls(jobs: list[nursery_pb2.Job], run_id: str, channel: grpc.aio.Channel) -> list[nursery_pb2.JobResult]:
    nursery = NurseryClient(lambda: channel)
    for job in jobs:
        await nursery.submit(job)
    results: dict[str, nursery_pb2.JobResult] = {}
    wanted = {job.job_id for job in jobs}
    if wanted:
        async for result in nursery.results(run_id):
            if result.job_id in wanted:
                results[result.job_id] = result
            if len(results) == len(wanted):
                break
    return [results[job.job_id] for job in jobs]


async def _report(run_id: str, channel: grpc.aio.Channel) -> str:
    stub: Any = observability_pb2_grpc.ObservabilityServiceStub(channel)
    reply = await stub.CreateReport(observability_pb2.CreateReportRequest(run_id=run_id))
    return f"report: {reply.path}"
