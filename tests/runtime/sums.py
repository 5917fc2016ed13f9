"""A user's file with a small task, and trouble in it: for commands that train it."""

_TASK = """
import time
from pathlib import Path
import torch
from torch import nn
import esper


def make_batch(number):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    return x, x.sum(1, keepdim=True)


def batch(step):
    if {when}:
        {trouble}
    return make_batch(step)


def make_task():
    return esper.Task(
        name="sums",
        make_model=lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)),
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.01),
        batch=batch,
        held_out=lambda name: [make_batch(10_000 + len(name))],
        loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1),
        steps=1500,
    )
"""


def sums(when: str, trouble: str) -> str:
    """Text of a file with `make_task`, of 1,500 steps; batches have `trouble` at each `step` of which `when` holds."""
    return _TASK.format(when=when, trouble=trouble)
