"""The reference loop: train a task under a session. It reads as any PyTorch loop with two calls more."""

from collections.abc import Callable

import torch

from esper.tolaria.session import Session
from esper.tolaria.step import Parts, train_step
from esper.tolaria.task import Task


def train(task: Task, parts: Parts, session: Session, steps: int, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Train until the model has `steps` steps behind it, and end the run; or stop it where `stop()` says so before."""
    while session.steps_done < steps:
        batches = task.micro_batches(session.steps_done)
        loss = train_step(parts, task, batches)
        session.step(batches[0] if task.accumulate == 1 else batches, loss)
        if session.due:
            session.decide()
        if session.steps_done < steps and stop():
            session.stop()
            return
    session.end()


def train_bare(task: Task, parts: Parts, steps: int) -> torch.Tensor:
    """The same loop without Esper, for comparisons. Returns the last loss."""
    loss = torch.zeros(())
    for step in range(steps):
        loss = train_step(parts, task, task.micro_batches(step))
    return loss
