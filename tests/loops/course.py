"""What a fit did, step by step."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class Died(Exception):
    """Raised in the middle of a fit by a test."""


@dataclass
class Course:
    """Weights after each step that was not undone, and what the trainer made of it."""

    model: nn.Module
    optimizer: Optimizer
    poison_at: int = 0  # the first time after this step, a weight becomes NaN
    die_at: int = 0  # raise after this step
    digests: dict[int, str] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)  # steps as they came
    sizes: list[int] = field(default_factory=list)  # parameters after each
    trainer: Any = None

    def saw(self, step: int, loss: float = 0.0) -> None:
        """After optimiser step `step`, counted from 1, by the session where there is one; 0: back where it began."""
        self.order.append(step)
        if step:
            self.digests[step], self.losses[step] = digest(self.model), loss
        self.sizes.append(sum(p.numel() for p in self.model.parameters()))
        assert_trains_the_model(self.optimizer, self.model)
        if step and step == self.die_at:
            raise Died(f"at step {step}")
        if step and step == self.poison_at:
            self.poison_at = 0
            with torch.no_grad():
                next(self.model.parameters()).view(-1)[0] = torch.nan


def digest(model: nn.Module) -> str:
    hashed = hashlib.sha256()
    for parameter in model.parameters():
        hashed.update(parameter.detach().numpy().tobytes())
    return hashed.hexdigest()[:16]


def assert_trains_the_model(optimizer: Optimizer, model: nn.Module) -> None:
    """The optimiser holds each of the model's parameters once, and nothing else; nor is there state of another."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = {id(p) for p in model.parameters()}
    assert len(held) == len(set(held)) and set(held) == wanted
    assert {id(p) for p in optimizer.state} <= wanted
