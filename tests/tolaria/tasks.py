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


def rough(seed: int = 0, optimizer: str = "adam", autocast: bool = False) -> Task:
    """Regression with all that a resumed run must have again: dropout, a norm's buffers, moments, a schedule."""
    made = {
        "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
        "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=2e-2, momentum=0.9),
    }
    schedules = {
        "adam": lambda it: torch.optim.lr_scheduler.CosineAnnealingLR(it, 600),
        "sgd": lambda it: torch.optim.lr_scheduler.ReduceLROnPlateau(it, factor=0.9, patience=20),
    }

    def make_model() -> nn.Module:
        first = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh()]
        return nn.Sequential(*first, nn.Linear(6, 6), nn.Dropout(0.1), nn.Tanh(), nn.Linear(6, 3))

    return builders.task(
        make_model,
        seed=seed,
        name="rough",
        target_layers=["0", "3"],
        seeds_per_layer=3,
        make_optimizer=made[optimizer],
        make_scheduler=schedules[optimizer],
        autocast_dtype=torch.bfloat16 if autocast else None,
    )


def no_task() -> str:
    return "not a task"
