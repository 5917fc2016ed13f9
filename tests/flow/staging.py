"""One runtime and one finished run in it, for all stage tests: nothing of it is pretended."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from esper.kasmina.handle import ModelHandle
from esper.kasmina.wrap import unwrap, wrap
from esper.rpc.client import open_channel
from esper.runtime.attach import attach
from esper.tolaria.session import Session
from esper.tolaria.step import Parts, build_parts, train_step
from esper.tolaria.task import Task, load_task
from tests.runtime.processes import Runtime, esper

SPEC = Path(__file__).with_name("stages.yaml")


@dataclass(frozen=True)
class Stage:
    """A runtime that runs, and the folder of a run that it has finished."""

    runtime: Runtime
    run: Path

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.run / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    def file(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.run / name).read_text())
        return values


@pytest.fixture(scope="session")
def stage(nats_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stages")
    runtime = Runtime(folder)
    try:
        home = str(runtime.home.root)
        done = esper("train", str(SPEC), "--home", home, "--no-view", folder=folder, limit_s=280)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        yield Stage(runtime, folder / "runs" / "stages")
    finally:
        runtime.stop()


@pytest.fixture
async def channel(stage: Stage) -> AsyncIterator[grpc.aio.Channel]:
    contact = stage.runtime.contact
    async with open_channel(contact.address, token=contact.token()) as opened:
        yield opened


@dataclass
class Loop:
    """A loop of the user's own, attached to the runtime."""

    task: Task
    parts: Parts
    handle: ModelHandle
    session: Session

    def train(self, steps: int) -> None:
        for _ in range(steps):
            batches = self.task.micro_batches(self.session.steps_done)
            self.session.step(batches[0], train_step(self.parts, self.task, batches))
            if self.session.due:
                self.session.decide()

    def close(self) -> None:
        self.session.close()
        unwrap(self.handle)


def begin(stage: Stage, folder: Path, *, run_id: str = "loop", resume: bool = False) -> Loop:
    """Wrap and attach the digits model; nothing grows by itself."""
    task = load_task("esper.tolaria.tasks.digits:task", {"seed": 1, "batch_size": 64})
    parts = build_parts(task)
    batch = task.micro_batches(0)[0]
    handle = wrap(parts.model, task.target_layers, seeds_per_layer=4, telemetry_enabled=True, example=batch[0])
    session = attach(
        handle,
        parts.optimizer,
        task=task,
        runtime=stage.runtime.contact,
        run_id=run_id,
        directory=folder,
        total_steps=400,
        growth={"policy": "never", "decision_every_steps": 10, "validate_every_steps": 20, "embargo_steps": 10},
        resume=resume,
    )
    return Loop(task, parts, handle, session)


@pytest.fixture(scope="session")
def loop(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    begun = begin(stage, tmp_path_factory.mktemp("loop"))
    yield begun
    begun.close()
