"""A run with every component in this process, its kernels straight from the template library."""

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import interface_pb2
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.api.urza.v1 import library_pb2
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_interface
from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface
from esper.blueprint.matching import match
from esper.karn.templates import TEMPLATES
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import Transition
from esper.kasmina.nursery.worker import NurseryWorker
from esper.kasmina.wrap import unwrap, wrap
from esper.runtime.local import LocalLine
from esper.tamiyo.answer import Controller
from esper.tamiyo.codec import interface_key
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.governor import Governor
from esper.tolaria.replay import make_run
from esper.tolaria.run import Run
from esper.tolaria.session import Session
from esper.tolaria.settings import Budget, GrowthSettings
from esper.tolaria.spool import Spool
from esper.tolaria.step import build_parts, step_flops, train_step
from esper.tolaria.task import Task

# The whole scheme in few steps: what it finds is noise, how it goes about it is not.
QUICK = {
    "first_event_step": 20,
    "event_spacing_steps": 100,
    "nursery_steps": 20,
    "measure_every_steps": 10,
    "ramp_steps": 5,
    "verdict_steps": 40,
    "verdict_snapshots": 2,
    "snapshot_gap_steps": 5,
    "fine_tune_steps": 10,
    "embargo_steps": 20,
    "decision_every_steps": 10,
    "validate_every_steps": 20,
    "candidates_per_site": 2,
}


class Shelf:
    """Kernels by artifact id, made from templates on demand; ids depend on blueprint and interface alone."""

    def __init__(self, titles: tuple[str, ...] = tuple(TEMPLATES)) -> None:
        self.titles = titles
        self.kernels: dict[str, Kernel] = {}

    async def search(
        self, sites: Iterable[state_pb2.SiteState], _seed: int = 0
    ) -> dict[str, tuple[list[library_pb2.Kernel], int]]:
        interfaces = {interface_key(site.interface): site.interface for site in sites}
        return {key: (self.fitting(interface), 0) for key, interface in interfaces.items()}

    def fitting(self, message: interface_pb2.Interface) -> list[library_pb2.Kernel]:
        interface = read_interface(message)
        fitting = [title for title in self.titles if match(TEMPLATES[title].graph, interface)[0]]
        return [self._record(title, interface, message) for title in fitting]

    def kernel(self, artifact_id: str) -> Kernel:
        return self.kernels[artifact_id]

    def at_site(self, artifact_id: str, interface: Interface) -> Kernel:
        return self.kernels[artifact_id]

    def _record(self, title: str, interface: Interface, message: interface_pb2.Interface) -> library_pb2.Kernel:
        template = TEMPLATES[title]
        identity = blueprint_id(template.graph)
        artifact = hashlib.sha256(f"{identity} {interface}".encode()).hexdigest()
        self.kernels[artifact] = Kernel(artifact, identity, template.graph, interface)
        cost = infer(template.graph, interface)
        return library_pb2.Kernel(
            artifact_id=artifact,
            blueprint_id=identity,
            interface=message,
            status=library_pb2.KERNEL_STATUS_VALIDATED,
            title=title,
            family=template.family,
            parameter_count=cost.parameter_count,
            forward_flops_per_position=cost.forward_flops_per_position,
        )


@dataclass
class LocalRun:
    """One run, what was heard of it, and its session."""

    task: Task
    session: Session
    shelf: Shelf
    line: LocalLine
    runner: asyncio.Runner
    transitions: list[Transition] = field(default_factory=list)
    heard: list[trainer_pb2.AttachRequest] = field(default_factory=list)
    responses: list[controller_pb2.DecideResponse] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def run(self) -> Run:
        return self.session.run

    def train(self, until: int, *, after_step: Callable[["LocalRun"], None] = lambda _: None) -> None:
        """Train until the model has `until` steps behind it."""
        session, task = self.session, self.task
        while session.steps_done < until:
            batches = task.micro_batches(session.steps_done)
            loss = train_step(self.run.parts, task, batches)
            self.losses.append(float(loss))
            session.step(batches[0], loss)
            after_step(self)
            if session.due:
                self.transitions += session.decide()

    def close(self) -> None:
        self.session.close()
        self.runner.close()
        self.run.spool.close()
        unwrap(self.run.parts.model)


def start(
    task: Task,
    directory: Path,
    *,
    run_id: str = "local",
    steps: int = 200,
    growth: dict[str, Any] | None = None,
    budget: Budget | None = None,
    shelf: Shelf | None = None,
    governor: Governor | None = None,
    summarise: Callable[[str], Any] | None = None,
    lr: float | None = None,
    **session_options: Any,
) -> LocalRun:
    """A fresh run of `task` in `directory`; `growth` is laid over QUICK."""
    directory.mkdir(parents=True, exist_ok=True)
    shelf = shelf or Shelf()
    parts = build_parts(task)
    for group in parts.optimizer.param_groups:
        group["lr"] = lr or group["lr"]
    batch = task.micro_batches(0)[0]
    handle = wrap(parts.model, task.target_layers, task.seeds_per_layer, run=lambda m: task.forward(m, batch))
    checkpoints = CheckpointStore(directory / "checkpoints")

    async def nothing(_: str) -> list[Any]:
        return []

    heard: list[trainer_pb2.AttachRequest] = []
    responses: list[controller_pb2.DecideResponse] = []

    def hear(request: trainer_pb2.AttachRequest) -> None:
        heard.append(request)
        if request.HasField("checkpoint"):
            manifest = request.checkpoint.manifest
            checkpoints.write(manifest, Path(manifest.tensors.path))

    worker = NurseryWorker(make_run, shelf.kernel, directory)
    controller = Controller(shelf.search, summarise or nothing, Timestamp)
    runner = asyncio.Runner()
    line = LocalLine(
        lambda packet: runner.run(controller.answer(packet)), worker, shelf.at_site, hear, responses.append
    )
    flops, rows = step_flops(parts, task)
    run = Run(
        run_id=run_id,
        directory=directory,
        parts=parts,
        executor=handle.executor,
        line=line,
        spool=Spool(directory / "spool"),
        settings=GrowthSettings(**(QUICK | (growth or {}))),
        budget=budget or Budget(),
        task=task,
        total_steps=steps,
        seed=task.seed,
        deterministic=True,
        host_step_flops=flops,
        batch_rows=rows,
    )
    session = Session(run, governor=governor, **session_options)
    return LocalRun(task, session, shelf, line, runner, heard=heard, responses=responses)


def resume(task: Task, directory: Path, **options: Any) -> LocalRun:
    """The run of `directory` made again and put to its latest checkpoint; its journal is replayed."""
    again = start(task, directory, **options)
    manifest, tensors = CheckpointStore(directory / "checkpoints").latest()
    again.session.resume(manifest, tensors)
    return again
