"""Runs whose task no worker can import, and a controller that tries what a test wants tried."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.kasmina.codec import read_curve
from esper.kasmina.nursery.trial import Curve
from esper.tolaria.shadow import ShadowNursery
from esper.tolaria.task import Task
from tests import builders
from tests.flow import local as flow
from tests.flow.local import LocalRun, Shelf
from tests.tolaria.script import Command, Script


@dataclass
class Tries(Script):
    """The script with another length of trial; `inserts`: whether the best candidate enters the host."""

    nursery_steps: int = 20
    inserts: bool = True

    def _event(self, packet):
        event = super()._event(packet)
        event.nursery_steps = self.nursery_steps
        return event

    def _after_trial(self, packet, trial):
        if self.inserts:
            yield from super()._after_trial(packet, trial)
        else:
            yield from (Command(cancel=control_pb2.Cancel(seed=curve.seed)) for curve in trial.curves)


class NobodyElse:
    """In the place of the workers: a job that leaves the process is an error."""

    def do(self, job, emit, stop=lambda: False):
        raise AssertionError(f"job {job.job_id} left the process")


def begin(
    directory: Path,
    task: Task,
    *,
    every_steps: int = 1,
    titles: tuple[str, ...] = ("bottleneck_mlp", "wide_mlp"),
    growth: dict | None = None,
    shelf: Shelf | None = None,
    checkpoint_every_steps: int = 1000,
    **script: object,
) -> LocalRun:
    """A run of `task` that does its nursery's work itself."""
    shelf = shelf or Shelf(titles)
    local = flow.start(task, directory, shelf=shelf, growth=growth, checkpoint_every_steps=checkpoint_every_steps)
    local.run.shadow = ShadowNursery(local.run, task, every_steps)
    local.line.decide = Tries(shelf, **script)
    local.line.nursery = NobodyElse()
    return local


@pytest.fixture
def start(tmp_path):
    """Begins runs of a test's, and ends them."""
    begun = []

    def make(task, **options):
        begun.append(begin(tmp_path / f"run-{len(begun)}", task, **options))
        return begun[-1]

    yield make
    for local in begun:
        local.close()


def results(local: LocalRun, kind: str) -> list[nursery_pb2.JobResult]:
    """What the controller was told of, of one kind of job."""
    return [result for packet in local.line.decide.packets for result in packet.results if result.HasField(kind)]


def curves(local: LocalRun) -> list[Curve]:
    """The gain curves of a run's only trial."""
    (result,) = results(local, "trial")
    assert not result.failure.code, result.failure.message
    return [read_curve(curve) for curve in result.trial.curves]


# Tasks


class Noisy(nn.Module):
    """All that a pass may disturb: dropout, a norm that learns its statistics, one that is frozen, noise, a counter."""

    def __init__(self):
        super().__init__()
        self.into, self.norm, self.drop = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3)
        self.site, self.frozen, self.out = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("rows", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.rows += len(x)
        h = self.drop(torch.tanh(self.norm(self.into(x))))
        return self.out(torch.tanh(self.frozen(self.site(h)))) + 0.01 * torch.rand(())


def noisy(**changes) -> Task:
    return builders.task(Noisy, target_layers=["site"], seeds_per_layer=2, **changes)


class Linear(nn.Module):
    """Linear whatever it learns. A class of its own: torch does not compile its containers themselves."""

    def __init__(self):
        super().__init__()
        self.site, self.out = nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.out(self.site(x))


def linear(target, **changes) -> Task:
    """A linear host, and `target(x, noise)` for it: x is [B, 6], noise [B], both normal."""

    def batch(step: int, count: int = 64):
        x, noise = builders.rows(count, 6, seed=3000 + step), builders.rows(count, 1, seed=90_000 + step)[:, 0]
        return x, target(x, noise)

    slices = {"select": -1, "judge": -2, "test": -3}
    return Task(
        name="linear",
        make_model=Linear,
        make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
        batch=batch,
        held_out=lambda name: [batch(slices[name], 500)],
        loss=lambda outputs, batch: (outputs[:, 0] - batch[1]).square(),
        target_layers=["site"],
        seeds_per_layer=2,
        **changes,
    )


def bent() -> Task:
    """Needs a product, which no linear host has."""
    return linear(lambda x, noise: 2 * x[:, 0] * x[:, 1] + 0.3 * noise)


def straight() -> Task:
    """A host that is all that is needed; what is left is noise."""
    return linear(lambda x, noise: x[:, 0] - 2 * x[:, 3] + 0.5 * noise)
