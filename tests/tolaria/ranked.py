"""Several ranks on this machine: each a process that trains its share of the regression task and says what it saw.

As a program: one rank, `python -m tests.tolaria.ranked FOLDER RANK WORLD OPTIONS_JSON`.
"""

import copy
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from esper.api.kasmina.v1 import control_pb2, telemetry_pb2
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface
from esper.errors import EsperError, KernelFault
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import State
from esper.runtime.rank_line import RankLine
from esper.tolaria.ranks import open_ranks
from esper.tolaria.session import Session
from esper.tolaria.task import Task, load_task
from tests import builders
from tests.flow.local import LocalRun, Shelf, start
from tests.tolaria.script import NURSERY_STEPS, Command, Packet, Script

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 200.0
GROWTH = {"max_twin_lag_steps": 20, "embargo_steps": 20}


def wide(seed: int = 0) -> Task:
    """The regression task with more places to grow at."""
    return builders.task(seed=seed, target_layers=["0", "2"], seeds_per_layer=3)


def noisy(seed: int = 0) -> Task:
    """The same with what makes ranks differ within a step: a norm over the share of the batch, and dropout."""

    def make_model() -> nn.Module:
        first = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh()]
        return nn.Sequential(*first, nn.Linear(6, 6), nn.Dropout(0.1), nn.Tanh(), nn.Linear(6, 3))

    return builders.task(make_model, seed=seed, target_layers=["0", "3"], seeds_per_layer=3)


@dataclass
class Cycle(Script):
    """One growth event after another, at whatever is free; what is grafted is kept and culled in turns."""

    count: int = 0

    def _commands(self, packet: Packet) -> Iterable[Command]:
        busy = [seed for seed in packet.seeds if State.DORMANT < seed.state < State.FOSSILIZED]
        free = [seed for seed in packet.seeds if seed.state == State.DORMANT]
        if not busy and free and packet.step >= self.germinate_at:
            self.count, self.keep = self.count + 1, self.count % 2 == 0
            yield Command(germinate=self._event_at(packet, free[self.count % len(free) :][:3]))
        self.germinate_at = 0 if busy else self.germinate_at
        yield from super()._commands(packet)

    def _event_at(self, packet: Packet, seeds: Iterable[telemetry_pb2.SeedStatus]) -> control_pb2.Germinate:
        sites = {site.name: site for site in packet.sites}
        assignments = []
        for number, seed in enumerate(seeds):
            kernels = self.shelf.fitting(sites[seed.seed.site].interface)
            kernel = kernels[(self.count + number) % len(kernels)]
            made = control_pb2.Assignment(seed=seed.seed, artifact_id=kernel.artifact_id, title=kernel.title)
            assignments.append(made)
        event = f"event-{packet.sequence}"
        return control_pb2.Germinate(event_id=event, assignments=assignments, nursery_steps=NURSERY_STEPS)


@dataclass
class ShelfKernels:
    """Kernels that every rank has on a shelf of its own. Implements RankKernels."""

    shelf: Shelf
    refuses: bool = False

    def pack(self, artifact_id: str) -> bytes:
        return artifact_id.encode()

    def load(self, artifact_id: str, interface: Interface, data: bytes) -> Kernel:
        assert data == artifact_id.encode()
        kernel = self.shelf.kernels[artifact_id]
        assert kernel.interface == interface
        if self.refuses:
            raise KernelFault("no room on this device")
        return kernel


@dataclass
class Seen:
    """What one rank saw."""

    steps: list[list[Any]] = field(default_factory=list)  # of each: step, parameters, digests of gradients, parameters
    moves: list[str] = field(default_factory=list)
    returns: int = 0  # to a graft's twin
    rollbacks: list[list[Any]] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)  # on the first rank: kinds of message that went out
    off_by: float = 0.0  # the largest distance of a newborn's gradient from that of one process
    compared: int = 0
    drawn: list[str] = field(default_factory=list)  # of each step: digest of the generator's state
    error: str = ""


def digest(tensors: list[Tensor]) -> str:
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(tensor.detach().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


def begin(folder: Path, options: dict[str, Any]) -> LocalRun:
    """This rank's run, its line by way of the first rank."""
    ranks = open_ranks(torch.device("cpu"))
    assert ranks is not None
    task = load_task(f"tests.tolaria.ranked:{options.get('task', 'wide')}")
    shelf = Shelf(tuple(options.get("titles", ("low_rank", "bottleneck_mlp"))))
    local = start(
        task,
        folder / f"rank-{ranks.rank}",
        steps=options["steps"],
        growth=GROWTH | options.get("growth", {}),
        shelf=shelf,
    )
    local.session.close()  # it knows nothing of ranks
    for site in local.run.executor.sites.values():
        shelf.fitting(write_interface(site.interface))
    local.line.decide = Cycle(shelf)
    local.run.ranks = ranks
    local.run.line = RankLine(
        ranks, local.line if ranks.first else None, ShelfKernels(shelf, options.get("refused_on") == ranks.rank)
    )
    if options.get("other_weights"):
        with torch.no_grad():
            for parameter in local.run.parts.model.parameters():
                parameter.add_(ranks.rank)
    if options.get("other_rate_on") == ranks.rank:
        local.run.parts.optimizer.param_groups[0]["lr"] *= 2
    local.session = Session(local.run)
    torch.manual_seed(100 + ranks.rank)
    return local


def follow(local: LocalRun, options: dict[str, Any], seen: Seen) -> None:
    session, task, model = local.session, local.task, local.run.parts.model
    rank, optimizer = dist.get_rank(), local.run.parts.optimizer
    ddp: nn.Module = DistributedDataParallel(model)
    if options.get("not_averaged"):
        session.replicas.close()
    lost = {tuple(place) for place in options.get("lost", ())}  # (iteration, rank): its loss is told as NaN
    for iteration in range(options["steps"]):
        batch = session.shard(task.batch(session.steps_done))
        if iteration in options.get("fault_at", ()) and rank == options["fault_on"]:
            for graft in local.run.executor.grafts.values():
                graft.use_form(_raise)
        loss = task.loss(task.forward(ddp, batch), batch).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if local.run.executor.grafts and iteration % 7 == 0 and options.get("compared", True):
            compare(local, seen)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        optimizer.step()
        told = torch.tensor(float("nan")) if (iteration, rank) in lost else loss
        rollback = session.step(batch, told)
        if rollback is not None:
            seen.rollbacks.append([rollback.step, rollback.restored_step, list(rollback.locked_seeds)])
        if session.due:
            moved = session.decide()
            seen.moves += [f"{m.step} {m.seed} {m.source.name} {m.target.name}" for m in moved]
            seen.returns += sum("went on from the twin" in m.reason for m in moved)
            if options.get("wrap_again") and any(m.target.name in ("FOSSILIZED", "CULLED") for m in moved):
                ddp = DistributedDataParallel(model)
        count = sum(p.numel() for p in model.parameters())
        seen.drawn.append(digest([torch.get_rng_state()]))
        seen.steps.append([session.steps_done, count, digest(gradients), digest(list(model.parameters()))])
    if options.get("end"):
        session.end()
        seen.steps.append([session.steps_done, 0, "", digest(list(model.parameters()))])
    seen.heard = sorted({str(message.WhichOneof("message")) for message in local.heard})


def compare(local: LocalRun, seen: Seen) -> None:
    """The gradients of this step beside those of one process on the whole batch."""
    session, task, model = local.session, local.task, local.run.parts.model
    alone = copy.deepcopy(model)
    alone.zero_grad(set_to_none=True)
    batch = task.batch(session.steps_done)
    with torch.random.fork_rng():
        task.loss(task.forward(alone, batch), batch).mean().backward()
    for here, there in zip(model.parameters(), alone.parameters(), strict=True):
        assert (here.grad is None) == (there.grad is None)
        if here.grad is not None:
            seen.off_by = max(seen.off_by, float((here.grad - there.grad).abs().max()))
            seen.compared += 1


def _raise(*_: Any) -> Tensor:
    raise RuntimeError("no kernel image")


def main() -> None:
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    options = json.loads(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    seen = Seen()
    try:
        local = begin(folder, options)
        follow(local, options, seen)
        local.close()
    except EsperError as error:
        seen.error = f"{type(error).__name__}: {error}"
    (folder / f"seen-{rank}.json").write_text(json.dumps(vars(seen)))
    dist.destroy_process_group()
    # DDP keeps the group's threads alive, and torch aborts where one drops a tensor while the interpreter ends
    # (pytorch/pytorch#179291)
    os._exit(0)


def run_ranks(folder: Path, world: int = 2, *, fails: bool = False, **options: Any) -> list[Seen]:
    """Train on `world` ranks to the end; what each saw, by rank. `fails`: every rank is to end in an EsperError."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    logs = [folder / f"rank-{rank}.out" for rank in range(world)]
    children = []
    try:
        for rank, log in enumerate(logs):
            arguments = [str(folder), str(rank), str(world), json.dumps(options)]
            with log.open("wb") as output:
                children.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.tolaria.ranked", *arguments],
                        cwd=ROOT,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        deadline = time.monotonic() + LIMIT_S
        while any(child.poll() is None for child in children):
            failed = [rank for rank, child in enumerate(children) if child.poll()]
            assert not failed, f"rank {failed[0]} ended with an error:\n{logs[failed[0]].read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s:\n" + logs[0].read_text()[-2000:]
            time.sleep(0.05)
        for child, log in zip(children, logs, strict=True):
            assert child.returncode == 0, log.read_text()[-3000:]
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
    found = [Seen(**json.loads((folder / f"seen-{rank}.json").read_text())) for rank in range(world)]
    assert all(bool(seen.error) == fails for seen in found), [seen.error for seen in found]
    return found


if __name__ == "__main__":
    main()
