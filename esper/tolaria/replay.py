"""A run's host in another process: made from the task and a snapshot, moved on by the task's batches.

Implements the nursery's HostRun.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.api.common.v1 import training_pb2
from esper.blueprint.initialise import initialise
from esper.errors import PreconditionFailed
from esper.host.forward import detach
from esper.host.proof import prove
from esper.host.sites import Site, select
from esper.host.surgery import remove_parameters
from esper.kasmina.kernel import Kernel, weights_seed
from esper.kasmina.regrow import GraftSpec, regrow
from esper.tolaria.codec import read_task
from esper.tolaria.snapshot import Snapshot, capture, load, restore, restore_model
from esper.tolaria.step import Parts, autocast, backward, build_parts, update
from esper.tolaria.task import Batch, Task, load_task


class OnTask:
    """What any model of a task is trained and measured on: the task's forward, loss, score and held-out data."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.clip_norm = task.clip_norm

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        with autocast(self.task, model):
            return self.task.forward(model, batch)

    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        return self.task.loss(outputs, batch)

    def scores(self, outputs: Any, batch: Batch) -> Tensor | None:
        return None if self.task.score is None else self.task.score(outputs, batch)

    def held_out(self, slices: Iterable[str]) -> list[Batch]:
        return self.task.examples(slices)


class Replay(OnTask):
    """The host of a run at a snapshot, ready to go on."""

    def __init__(
        self,
        task: Task,
        snapshot: Snapshot | None = None,
        specs: Sequence[GraftSpec] = (),
        kernels: Mapping[str, Kernel] | None = None,
        *,
        site_names: Iterable[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(task)
        self.parts: Parts = build_parts(task, device=device)
        names = {spec.seed.site for spec in specs} | set(site_names)
        self._sites = find_sites(task, self.parts.model, names)
        self.grafts = regrow(self.parts.model, self._sites, specs, kernels or {}, self.parts.optimizer)
        self.step = 0
        if snapshot is not None:
            self._take(snapshot)

    @property
    def model(self) -> nn.Module:
        return self.parts.model

    @property
    def optimizer(self) -> Optimizer:
        return self.parts.optimizer

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def batches(self, step: int) -> list[Batch]:
        return self.task.micro_batches(step)

    def gradients(self) -> Tensor:
        self.parts.model.train()
        self.parts.optimizer.zero_grad(set_to_none=True)
        return backward(self.parts, self.task, self.batches(self.step))

    def update(self, loss: Tensor) -> None:
        update(self.parts, self.task, loss)
        self.step += 1

    def save(self, path: Path, *, model_only: bool) -> None:
        capture(self.parts, self.step, model_only=model_only).save(path)

    def load(self, path: Path) -> None:
        snapshot = load(path)
        restore_model(self.parts.model, snapshot)
        self.step = snapshot.step

    def take_out(self, spec: GraftSpec) -> None:
        """Remove one graft. Raises PreconditionFailed for a folded one: nothing is left to remove."""
        if spec.folded:
            raise PreconditionFailed(f"fossil {spec.seed} was folded into {spec.seed.site} and cannot be switched off")
        detach(self._sites[spec.seed.site], spec.seed.slot)
        remove_parameters(self.parts.optimizer, self.grafts.pop(spec.seed).parameters())

    def start_afresh(self, seed: int) -> None:
        """Give every graft first weights and its full weight in the host."""
        for seed_id, graft in self.grafts.items():
            drawn = weights_seed(self.task.seed, str(seed_id), "", f"afresh-{seed}")
            initialise(graft.body, torch.Generator().manual_seed(drawn))
            graft.settle()

    def _take(self, snapshot: Snapshot) -> None:
        if snapshot.scalars:  # a whole state; otherwise the model alone
            restore(self.parts, snapshot)
        else:
            restore_model(self.parts.model, snapshot)
        self.step = snapshot.step


def make_run(
    task: training_pb2.TaskReference,
    snapshot: Path | None,
    grafts: Sequence[GraftSpec],
    kernels: dict[str, Kernel],
    *,
    site_names: Iterable[str] = (),
    without: Iterable[GraftSpec] = (),
    fresh_weights_seed: int | None = None,
) -> Replay:
    """Make a run's host again from messages; the nursery's MakeRun.

    `without`: grafts to take out after the snapshot is in place. `fresh_weights_seed`:
    there is no snapshot, and grafts start from first weights of their own.
    """
    reference = read_task(task)
    loaded = load_task(reference.factory, reference.arguments, reference.import_paths)
    state = load(snapshot) if snapshot is not None else None
    replay = Replay(loaded, state, grafts, kernels, site_names=site_names)
    for spec in without:
        replay.take_out(spec)
    if fresh_weights_seed is not None:
        replay.start_afresh(fresh_weights_seed)
    return replay


def find_sites(task: Task, model: nn.Module, names: Iterable[str]) -> dict[str, Site]:
    """Sites of the given names, proved on the task's first batch."""
    wanted = sorted(set(names))
    if not wanted:
        return {}
    batch = task.micro_batches(0)[0]
    chosen = select(model, wanted)
    with torch.random.fork_rng(devices=[]):
        return {site.name: site for site in prove(model, chosen, lambda m: task.forward(m, batch))}
