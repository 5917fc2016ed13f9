"""See what a model is trained on where the trainer tells its callbacks neither batch nor loss."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from esper.errors import InvalidConfig, InvalidRequest
from esper.tolaria.task import Batch, Task


class Watched(Protocol):
    """A callback that a watch tells."""

    task: Task

    def next_micro_batch(self) -> Batch: ...

    def before_forward(self, batch: Batch) -> None: ...

    def after_forward(self, batch: Batch, loss: Tensor) -> None: ...

    def closing_on_error(self) -> contextlib.AbstractContextManager[None]: ...


class Watch:
    """The model's forwards in training: the Trainer tells its callbacks neither batch nor loss."""

    def __init__(self, callback: Watched | None) -> None:
        self.callback = callback

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.callback is not None and _is_training(model):
            with self.callback.closing_on_error():
                _refuse_scaling(self.callback.task, kwargs)
                self.callback.before_forward(_seen(self.callback.next_micro_batch(), kwargs))

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.callback is not None and _is_training(model):
            with self.callback.closing_on_error():
                batch = _seen(self.callback.next_micro_batch(), kwargs)
                self.callback.after_forward(batch, _loss_of(output).detach() / self.callback.task.accumulate)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        """A copy of the model is nobody's training."""
        return Watch(None)


def _is_training(model: nn.Module) -> bool:
    return model.training and torch.is_grad_enabled()


def _loss_of(output: Any) -> Tensor:
    """Where the Trainer takes it from. Raises InvalidRequest where there is none."""
    loss = output.get("loss") if isinstance(output, Mapping) else output[0]
    if not isinstance(loss, Tensor) or loss.ndim:
        raise InvalidRequest(
            "the model returns no loss, so Esper cannot follow it; let its forward return it first, or as 'loss'"
        )
    return loss


def _refuse_scaling(task: Task, kwargs: Mapping[str, Any]) -> None:
    if "num_items_in_batch" in kwargs and task.accumulate > 1:
        raise InvalidConfig(
            "the model divides its loss by num_items_in_batch over all micro-batches, and a twin takes the mean of "
            "theirs; set model.accepts_loss_kwargs = False, or accumulate over one"
        )


def _seen(given: Batch, kwargs: Mapping[str, Any]) -> Batch:
    """What the loader gave, with what the model was called with in its place, so that a change between is seen."""
    return {name: kwargs.get(name, value) for name, value in given.items()}
