"""Tasks that a trainer of another library and a nursery can both make, of tuples and of named tensors."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from esper.tolaria.task import Batch, Task, load_task
from tests import builders
from tests.runtime.processes import ROOT
from tests.tolaria import tasks


def known(name: str, **arguments: Any) -> Task:
    """A task of this module, as a nursery can make it too."""
    return load_task(f"{__name__}:{name}", arguments, (str(ROOT),))


class Keyed(nn.Module):
    """A model as transformers has them: keyword arguments in, a dict with the loss out."""

    def __init__(self, net: nn.Module, loss: Any) -> None:
        super().__init__()
        self.net = net
        self._loss = loss

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        outputs = self.net(inputs)
        return {"outputs": outputs} if labels is None else {"loss": self._loss(outputs, labels), "outputs": outputs}


def keyed(plain: Task, loss: Any) -> Task:
    """The same task with batches of `inputs` and `labels`; `loss` is the mean one."""

    def named(batch: Batch) -> dict[str, Tensor]:
        return {"inputs": batch[0], "labels": batch[1]}

    return replace(
        plain,
        make_model=lambda: Keyed(plain.make_model(), loss),
        batch=lambda step: named(plain.batch(step)),
        held_out=lambda name: [named(batch) for batch in plain.held_out(name)],
        forward=lambda model, batch: model(**batch),
        loss=lambda outputs, batch: plain.loss(outputs["outputs"], (batch["inputs"], batch["labels"])),
        score=None,
    )


def split(whole: Task, accumulate: int) -> Task:
    """The same task in micro-batches."""
    if accumulate == 1:
        return whole

    def batch(step: int) -> list[Batch]:
        return [
            torch.utils._pytree.tree_map(lambda t, i=i: t.chunk(accumulate)[i], whole.batch(step))
            for i in range(accumulate)
        ]

    return replace(whole, batch=batch, accumulate=accumulate)


def regression(
    accumulate: int = 1, clip: float = 0.0, named: bool = False, autocast: bool = False, schedule: bool = True
) -> Task:
    """Five numbers to three, with dropout and a learning rate that falls. Site "2", or "net.2" of the named one."""

    def make_model() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Dropout(0.1), nn.Tanh(), nn.Linear(6, 3))

    plain = builders.task(
        make_model,
        clip_norm=clip or None,
        autocast_dtype=torch.bfloat16 if autocast else None,
        make_scheduler=(lambda optimizer: CosineAnnealingLR(optimizer, 400)) if schedule else None,
        target_layers=["net.2" if named else "2"],
        seeds_per_layer=2,
    )
    return split(keyed(plain, F.mse_loss) if named else plain, accumulate)


def module() -> Task:
    """The regression by a LightningModule that is the model itself."""
    from tests.loops.lightning_fit import Module

    plain = regression()
    return replace(
        plain,
        make_model=lambda: Module(plain),
        forward=lambda module, batch: module.net(batch[0]),
        target_layers=["net.2"],
    )


def digits(accumulate: int = 2, clip: float = 1.0, named: bool = False) -> Task:
    """The digits with dropout and a schedule, clipped, in micro-batches."""
    plain = replace(tasks.noisy(), clip_norm=clip)
    return split(keyed(plain, F.cross_entropy) if named else plain, accumulate)
