"""`esper demo|train --no-services`: a run and its controls in this process, one thing after the other.

The training thread waits for every answer, so that two runs are equal, and nothing is
said of overhead.
"""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import torch

from esper.api.nissa.v1 import observability_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.nissa.sink import AskAncestry, RunSink
from esper.runtime.attach import Plan, hello_of, make_run, open_session, warning
from esper.runtime.components import Components
from esper.runtime.controls import control_jobs, count_ends, summarise
from esper.runtime.home import KEEPERS, Home
from esper.runtime.platform import now
from esper.runtime.runs import check_resumable, read_run
from esper.runtime.spec import TrainSpec
from esper.runtime.stopping import STOPPED, how_to_go_on, stop_on_signal
from esper.runtime.trainer import build, run_session
from esper.runtime.view import watch
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.worker import events_of_result

Event = observability_pb2.RunEvent


def conduct_alone(spec: TrainSpec, *, live: bool, controls: bool) -> int:
    """Train a run as its spec says, and its controls if wanted, here. Returns the exit status.

    That is STOPPED for a run that was stopped, which can go on.
    Raises Conflict where a runtime holds the home, and as `check_resumable` for a run to be resumed.
    """
    torch.set_num_threads(spec.threads)
    task, parts, handle = build(spec)
    if spec.resume:
        check_resumable(read_run(Path(spec.directory)), spec.steps or task.steps)
    plan = Plan(
        run_id=spec.run_id,
        directory=Path(spec.directory).absolute(),
        task=task,
        settings=spec.growth_settings(task.growth),
        budget=spec.budget_settings(),
        total_steps=spec.steps or task.steps,
        seed=spec.seed,
        deterministic=True,
    )
    hello = hello_of(handle, plan)
    with ExitStack() as stack:
        home = Home(Path(spec.home))
        stack.enter_context(home.held("runtime", *KEEPERS, serves=False))
        spec.refuse_taken()
        components = stack.enter_context(Components(home))
        components.make_kernels(hello.sites, hello.random_seed)
        spec.write()  # what can be wrong with the start is known by now
        recording = stack.enter_context(Recording(plan.directory, live, components.ancestry))
        passed_over: list[str] = []
        store = CheckpointStore(plan.directory / "checkpoints", warn=passed_over.append)
        checkpoint = store.latest() if spec.resume else None
        recording.sink.request(trainer_pb2.AttachRequest(hello=hello))
        for text in passed_over:
            recording.sink.request(warning(text))
        run = make_run(handle, parts, plan, components.line(recording.sink, store))
        session = open_session(handle, run, checkpoint)
        with stop_on_signal() as stop:
            ended = run_session(spec, task, parts, session, stop)
        if ended:
            _conclude(plan, components, recording, controls)
    print(f"report: {plan.directory / 'report.html'}")
    if ended:
        return 0
    words = how_to_go_on(plan.run_id, plan.directory, run.step, plan.total_steps)
    print(f"esper: {words}", file=sys.stderr)
    return STOPPED


def _conclude(plan: Plan, components: Components, recording: "Recording", controls: bool) -> None:
    """Train the controls, tell of their losses, and sum up."""
    run = read_run(plan.directory)
    jobs = control_jobs(run, plan.settings.validate_every_steps) if controls else []
    results = [components.do(job) for job in jobs]
    for event in (event for result in results for event in events_of_result(result)):
        recording.sink.event(event)
    recording.sink.event(summarise(run, results, count_ends(plan.run_id, recording.events), now()))


class Recording:
    """What is heard of a run, written down and shown while training goes on. A context manager."""

    def __init__(self, directory: Path, live: bool, ask_ancestry: AskAncestry) -> None:
        self.events: list[Event] = []
        self._show: SimpleQueue[Event | None] = SimpleQueue()
        self._viewer = threading.Thread(target=self._view, args=(live,), name="esper-view")
        self.sink = RunSink(directory, listen=self._listen, ask_ancestry=ask_ancestry)

    def __enter__(self) -> Self:
        self._viewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show.put(None)
        self._viewer.join()
        self.sink.close()

    def _listen(self, event: Event) -> None:
        self.events.append(event)
        self._show.put(event)

    def _view(self, live: bool) -> None:
        asyncio.run(watch(_events(self._show.get), live=None if live else False))


async def _events(get: Callable[[], Event | None]) -> AsyncIterator[Event]:
    while (event := await asyncio.to_thread(get)) is not None:
        yield event
