"""Runs as users have them, a runtime and a training process, for tests that kill one of their processes."""

import asyncio
import contextlib
import json
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from esper.api.tolaria.v1 import state_pb2
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface, Kind
from esper.rpc.client import open_channel
from esper.runtime.assortment import needs_of
from esper.runtime.clients import LibraryClient
from esper.runtime.inventory import Inventory
from esper.runtime.spec import TrainSpec
from esper.tolaria.task import Batch, Task
from esper.tolaria.tasks import digits
from tests.flow.local import QUICK
from tests.runtime.processes import ROOT, Esper, Runtime, until

PAUSE = "ESPER_DRILL_PAUSE_S"  # of a training step, in the training process alone
# A run that inserts two grafts and keeps them: what it finds is noise, that it finds the same again is not.
GROWING: dict[str, Any] = {"steps": 190, "policy": "periodic-random", "min_gain": 0.0, "min_standard_errors": 0.0}
STOCK = ("blobs", "db/urza.sqlite", "db/urza.sqlite-wal", "db/urza.sqlite-shm", "keys", "kernels")


def paced_digits(seed: int = 0) -> Task:
    """The digits, at a pace that leaves time to kill something."""
    plain = digits.task(seed=seed, batch_size=32)
    pause_s = float(os.environ.get(PAUSE, 0))

    def batch(step: int) -> Batch:
        time.sleep(pause_s)
        return plain.batch(step)

    return replace(plain, batch=batch)


@dataclass
class Training:
    """A run in a process of its own, and what it has written."""

    directory: Path
    process: Esper

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "result.json").read_text())
        return found

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        return [e for e in _lines(self.directory / "events.jsonl") if not kind or e["kind"] == kind]

    def journal(self) -> list[dict[str, Any]]:
        return _lines(self.directory / "journal.jsonl")

    def moved(self, state: str) -> bool:
        return any(event["to"] == state for event in self.events("transition"))

    def finish(self, limit_s: float = 120.0) -> None:
        """To its end, which must be good."""
        assert self.process.wait(limit_s) == 0, self.process.text


def begin(
    runtime: Runtime,
    folder: Path,
    run_id: str = "drill",
    *,
    steps: int = 300,
    pause_s: float = 0.0,
    deterministic: bool = True,
    seed: int = 0,
    resume: bool = False,
    **growth: Any,
) -> Training:
    """Start training in a folder of its own, or go on with what was begun there."""
    spec = TrainSpec(
        task="tests.flow.drills:paced_digits",
        arguments={"seed": seed},
        import_paths=[str(ROOT)],
        run_id=run_id,
        directory=str(folder / run_id),
        steps=steps,
        seed=seed,
        deterministic=deterministic,
        home=str(runtime.home.root),
        growth=QUICK | growth,
        resume=resume,
    )
    path = spec.write()
    os.environ[PAUSE] = str(pause_s)
    try:
        return Training(Path(spec.directory), Esper(folder, str(path), module="esper.runtime.trainer"))
    finally:
        del os.environ[PAUSE]


def copy_stock(source: Path, target: Path) -> None:
    """A home with the same keys and kernels, and nothing else: what another run on it does depends on nothing else."""
    for name in STOCK:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)


def stocked(runtime: Runtime, limit_s: float = 120.0, seed: int = 0) -> frozenset[str]:
    """Wait until every blueprint of a run of this seed has its verdict for every site; the artifact ids promoted."""
    return asyncio.run(_stocked(runtime, limit_s, seed))


async def _stocked(runtime: Runtime, limit_s: float, seed: int) -> frozenset[str]:
    convolutions = [
        state_pb2.SiteState(layer_kind="Conv2d", interface=write_interface(Interface(Kind.MAP2D, channels)))
        for channels in (4, 6)  # of the digits
    ]
    async with open_channel(runtime.contact.address, token=runtime.contact.token()) as channel:
        inventory = Inventory(LibraryClient(lambda: channel))
        async with asyncio.timeout(limit_s):
            while True:
                found = await inventory.look(needs_of(convolutions, seed))
                if not any(one.being_made for one in found):
                    return frozenset(kernel.artifact_id for one in found for kernel in one.ready)
                await asyncio.sleep(0.1)


def kill_workers(runtime: Runtime, pool: str) -> None:
    """Kill the processes that do a pool's jobs, idle ones too; one at least. Some may end by themselves meanwhile."""
    killed: list[psutil.Process] = []

    def some() -> list[psutil.Process]:
        for worker in runtime.part("esper.runtime.warm", f"esper-{pool}-").children():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
                killed.append(worker)
        return killed

    until(some, 20, f"no worker of {pool} to kill")


def outcome(training: Training) -> dict[str, Any]:
    """What a run came to and what was recorded of it, without what depends on the wall clock.

    That is how often it waited, and whether the last of two validations of its last step was still counted.
    """
    kept = {k: v for k, v in training.result.items() if k not in ("run_id", "stalled_steps", "nursery_flops")}
    moves = [tuple(e[k] for k in ("seed", "from", "to", "step")) for e in training.events("transition")]
    losses = {(e["step"], e["arm"]): e["loss"] for e in training.events("validation")}
    return kept | {"moves": moves, "losses": losses}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file that is being written."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]
