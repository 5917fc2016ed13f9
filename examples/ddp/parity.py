"""The task: whether the products of two halves of a row are positive together. A batch is that of all ranks."""

import torch
from torch import Tensor, nn

import esper

ROWS = 64  # of a batch; a multiple of the number of ranks

data = torch.randn(1200, 8, generator=torch.Generator().manual_seed(0))
labels = (data[:, :4].prod(1) + data[:, 4:].prod(1) > 0).long()


def batch(step: int) -> tuple[Tensor, Tensor]:
    rows = torch.randint(0, 600, (ROWS,), generator=torch.Generator().manual_seed(step))
    return data[rows], labels[rows]


def held_out(name: str) -> list[tuple[Tensor, Tensor]]:
    first = {"select": 600, "judge": 800, "test": 1000}[name]
    return [(data[first : first + 200], labels[first : first + 200])]


def make_task() -> esper.Task:
    return esper.Task(
        name="parity",
        make_model=lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)),
        make_optimizer=lambda model: torch.optim.Adam(model.parameters(), 3e-3),
        batch=batch,
        held_out=held_out,
        loss=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1], reduction="none"),
    )
