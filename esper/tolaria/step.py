"""One training step, the same in the reference loop, the twin and the nursery."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils import _pytree
from torch.utils.flop_counter import FlopCounterMode

from esper.tolaria.task import Batch, Task


@dataclass(slots=True)
class Parts:
    """What changes when a model trains."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None = None
    scaler: torch.amp.GradScaler | None = None


def build_parts(task: Task, model: nn.Module | None = None, device: torch.device | str = "cpu") -> Parts:
    """Model, optimiser, scheduler and scaler of a task, at its first weights."""
    model = (model or task.build_model()).to(device)
    optimizer = task.make_optimizer(model)
    scheduler = task.make_scheduler(optimizer) if task.make_scheduler else None
    scaler = torch.amp.GradScaler(torch.device(device).type) if task.autocast_dtype is torch.float16 else None
    return Parts(model, optimizer, scheduler, scaler)


def train_step(parts: Parts, task: Task, micro_batches: list[Batch]) -> Tensor:
    """Forward, backward, clip, update, schedule. Returns the mean loss, 0-dim and detached."""
    parts.model.train()
    parts.optimizer.zero_grad(set_to_none=True)
    total = backward(parts, task, micro_batches)
    update(parts, task, total)
    return total


def backward(parts: Parts, task: Task, micro_batches: list[Batch]) -> Tensor:
    """Accumulate gradients over the micro-batches. Returns the mean loss, detached."""
    losses = []
    for batch in micro_batches:
        loss = mean_loss(parts.model, task, batch) / len(micro_batches)
        (parts.scaler.scale(loss) if parts.scaler else loss).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def update(parts: Parts, task: Task, loss: Tensor) -> None:
    """Clip, step the optimiser, step the scheduler."""
    if parts.scaler:
        parts.scaler.unscale_(parts.optimizer)
    if task.clip_norm is not None:
        nn.utils.clip_grad_norm_(parts.model.parameters(), task.clip_norm)
    if parts.scaler:
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
    else:
        parts.optimizer.step()
    if isinstance(parts.scheduler, ReduceLROnPlateau):
        parts.scheduler.step(loss)
    elif parts.scheduler is not None:
        parts.scheduler.step()


def mean_loss(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    """The loss to train on, 0-dim."""
    with autocast(task, model):
        return task.loss(task.forward(model, batch), batch).mean()


def autocast(task: Task, model: nn.Module) -> torch.amp.autocast_mode.autocast:
    """The task's autocast context on the model's device; disabled where the task has none."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=task.autocast_dtype or torch.bfloat16, enabled=task.autocast_dtype is not None)


def step_flops(parts: Parts, task: Task) -> tuple[float, int]:
    """Floating-point operations and training examples of one step, counted by torch on a copy of the model."""
    copied = copy.deepcopy(parts.model).train()
    micro_batches = task.micro_batches(0)
    with FlopCounterMode(display=False) as counter, torch.random.fork_rng(devices=[]):
        for batch in micro_batches:
            mean_loss(copied, task, batch).backward()
    rows = sum(_rows(batch) for batch in micro_batches)
    return float(counter.get_total_flops()), rows


def _rows(batch: Batch) -> int:
    """Examples in a batch: the leading size of its first tensor."""
    return next((len(leaf) for leaf in _pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), 0)
