"""Tasks with factories that a nursery can import."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.tolaria.task import Task
from esper.tolaria.tasks import digits
from tests import builders


class NoisyConvNet(digits.SmallConvNet):
    """The digits network with dropout: every training step draws from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv1(images))
        x = self.drop(F.relu(self.conv2(x)))
        x = F.relu(self.conv3(x))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def noisy(seed: int = 0) -> Task:
    """Digits with dropout, moments and a learning rate that falls: all there is to restore."""
    return replace(
        digits.task(seed=seed, steps=250, batch_size=64),
        name="noisy",
        growth={},
        make_model=NoisyConvNet,
        make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
        make_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400),
    )


def regression(seed: int = 0) -> Task:
    """Five numbers to three, and nothing random in a step."""
    return builders.task(seed=seed, target_layers=["2"], seeds_per_layer=2)


def no_task() -> str:
    return "not a task"
