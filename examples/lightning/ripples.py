"""The task: the height of a rippled surface, as those who try candidates elsewhere can make it too."""

import torch
from torch import Tensor, nn

import esper

ROWS = 128  # of a batch


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Places [count, 2] and heights [count, 1]."""
    places = 4 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) - 2
    return places, (3 * places[:, :1]).sin() * (2 * places[:, 1:]).cos()


def make_task() -> esper.Task:
    return esper.Task(
        name="ripples",
        make_model=lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)),
        make_optimizer=lambda model: torch.optim.Adam(model.parameters(), 3e-3),
        batch=lambda step: rows(ROWS, step),
        held_out=lambda name: [rows(500, {"select": -1, "judge": -2, "test": -3}[name])],
        loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1),
        clip_norm=1.0,
    )
