"""One graft trained with its host beside its twin, and read three ways: by the twin, switched off, and elsewhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.matching import match
from esper.host.graft import Graft
from esper.karn.templates import TEMPLATES
from esper.kasmina.kernel import Kernel, first_weights, weights_seed
from esper.kasmina.lifecycle import SeedId, State
from esper.kasmina.nursery.measure import read
from esper.kasmina.regrow import GraftSpec, regrow
from esper.kasmina.schedule import ramp
from esper.kasmina.wrap import wrap
from esper.stats.paired import Paired, compare
from esper.tolaria.replay import Replay
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.snapshot import Snapshot, capture
from esper.tolaria.task import Task

VERDICT, ELSEWHERE = ("judge",), ("select", "test")
_ARTIFACT = "0" * 64  # these kernels were never compiled


@dataclass(frozen=True, slots=True)
class Graftable:
    """A blueprint of the library at a site of a task's model that takes it."""

    site: str
    kernel: Kernel
    title: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A graft after `verdict_steps` in its host; each comparison is a mean over the verdict's snapshots."""

    place: Graftable
    inserted_step: int
    twin: Paired  # on the verdict's slice
    ablation: Paired  # the same, the control being the host with the graft switched off
    elsewhere: Paired  # against the twin, on held-out examples no verdict sees


@dataclass(slots=True)
class Readings:
    """Losses [N] of one model at several steps, by slices."""

    verdict: list[Tensor]
    elsewhere: list[Tensor]

    def add(self, run: Replay) -> None:
        self.verdict.append(read(run, VERDICT).losses.double())
        self.elsewhere.append(read(run, ELSEWHERE).losses.double())


def graftables(task: Task) -> list[Graftable]:
    """Every blueprint of the library at every site it fits, by site and title."""
    handle = wrap(task.build_model(), task.target_layers, 1, run=lambda m: task.forward(m, task.micro_batches(0)[0]))
    return [
        Graftable(site.name, Kernel(_ARTIFACT, blueprint_id(graph), graph, site.interface), title)
        for site in handle.executor.sites.values()
        for title, graph in sorted((title, template.graph) for title, template in TEMPLATES.items())
        if match(graph, site.interface)[0]
    ]


def trained(task: Task, steps: Sequence[int]) -> Iterator[Snapshot]:
    """The task's run without growth, whole, after each of `steps` (ascending)."""
    run = Replay(task)
    for step in steps:
        _go_on(run, step)
        yield capture(run.parts, run.step, model_only=False)


def judged(task: Task, start: Snapshot, places: Sequence[Graftable], growth: GrowthSettings) -> Iterator[Judged]:
    """Graft each of `places` into the host at `start`, one at a time, and train it up to its first verdict."""
    end = start.step + growth.verdict_steps
    steps = [end - growth.snapshot_gap_steps * k for k in reversed(range(growth.verdict_snapshots))]
    twin = Readings([], [])
    run = Replay(task, start)
    for step in steps:
        _go_on(run, step)
        twin.add(run)
    for place in places:
        on, off = _grafted(task, start, place, growth, steps)
        yield Judged(
            place,
            start.step,
            twin=_compare(on.verdict, twin.verdict),
            ablation=_compare(on.verdict, off.verdict),
            elsewhere=_compare(on.elsewhere, twin.elsewhere),
        )


def _grafted(
    task: Task, start: Snapshot, place: Graftable, growth: GrowthSettings, steps: Sequence[int]
) -> tuple[Readings, Readings]:
    """What is read at `steps` with the graft, and with it switched off."""
    run = Replay(task, start, site_names=[place.site])
    seed = SeedId(place.site, 0)
    spec = GraftSpec(seed, _ARTIFACT, State.GRAFTING, alpha=0.0)
    graft = regrow(run.model, run.sites, [spec], {_ARTIFACT: place.kernel}, run.optimizer)[seed]
    drawn = weights_seed(task.seed, str(seed), place.title, str(start.step))
    first_weights(graft.body, torch.Generator().manual_seed(drawn), graft.strategy)
    on, off = Readings([], []), Readings([], [])
    for step in steps:
        while run.step < step:
            graft.alpha.fill_(ramp(run.step, start.step, growth.ramp_steps))
            run.update(run.gradients())
        _read_both(run, graft, on, off)
    return on, off


def _read_both(run: Replay, graft: Graft, on: Readings, off: Readings) -> None:
    on.add(run)
    graft.alpha.fill_(0.0)
    off.add(run)
    graft.alpha.fill_(1.0)


def _go_on(run: Replay, until: int) -> None:
    while run.step < until:
        run.update(run.gradients())


def _compare(arm: list[Tensor], control: list[Tensor]) -> Paired:
    return compare(torch.stack(arm).mean(0), torch.stack(control).mean(0))
