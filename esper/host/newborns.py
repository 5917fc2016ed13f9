"""Average over ranks the gradients that DistributedDataParallel does not know of.

DDP reduces the parameters that a model had when it was wrapped. Those of a graft that came later it passes over
without a word, so that every rank would train its own. Here they are averaged when the backward that DDP
synchronises ends: one flat bucket, before the caller can clip or step. Which parameters are in the bucket is
decided by what the model and the wrapper hold, which is the same on every rank, never by who has a gradient.
Inside `no_sync()` nothing is averaged; once the model is wrapped again, DDP reduces them itself.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from esper.errors import PreconditionFailed

Mean = Callable[[Tensor], None]  # replaces a flat tensor [N] by its mean over the ranks


class NewbornGradients:
    """Watches a model's forward; `remove` ends it. A copy of the model is not watched."""

    def __init__(self, model: nn.Module, grafts: Callable[[], Iterable[nn.Module]], mean: Mean) -> None:
        """`grafts`: those in the host now, in an order that all ranks share."""
        self._model = model
        self._grafts = grafts
        self._mean = mean
        self._wrapper: DistributedDataParallel | None = None  # that of the latest forward
        self._held: list[nn.Parameter] = []  # what it reduces
        self._watches: list[RemovableHandle] = []
        self._due: list[nn.Parameter] = []  # to be averaged when the next backward ends
        self._accumulated = False  # that backward has given parameters their gradients
        self._hook = model.register_forward_hook(self._after_forward)

    def remove(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()
        self._follow(None)
        self._due = []

    def _after_forward(self, model: nn.Module, _inputs: Any, output: Any) -> None:
        if model is not self._model or not torch.is_grad_enabled():
            return
        wrapper = DistributedDataParallel._get_active_ddp_module()
        if wrapper is None:
            for tensor in _differentiable(output) if model.training else ():
                tensor.register_hook(_refuse)
            return
        self._follow(wrapper)
        self._check_gone(wrapper)
        self._due = self._newborns() if wrapper.require_backward_grad_sync else []
        self._accumulated = False
        if not self._due:
            return
        tensors = list(_differentiable(output))
        if not tensors:
            raise PreconditionFailed(
                f"the model returns {type(output).__name__}, in which no tensor with a gradient is found, so the "
                "gradients of its grafts could not be averaged over the ranks; return tensors, tuples, dicts or "
                "dataclasses of tensors"
            )
        for tensor in tensors:
            tensor.register_hook(self._queue)

    def _follow(self, wrapper: DistributedDataParallel | None) -> None:
        """Learn what a wrapper reduces, and watch when it does."""
        if wrapper is self._wrapper:
            return
        if wrapper is not None and dist.get_world_size(wrapper.process_group) != dist.get_world_size():
            raise PreconditionFailed(
                "DistributedDataParallel spans a part of the ranks; "
                "growth under a process group of its own is not supported: wrap the model over all ranks"
            )
        for watch in self._watches:
            watch.remove()
        self._wrapper, self._held, self._watches = wrapper, [], []
        if wrapper is None:
            return
        self._held = [p for p in wrapper._module_parameters if p.requires_grad]
        # Each of them gets a gradient in every synchronised backward, but where unused ones are allowed for.
        watched = self._held if wrapper.find_unused_parameters else self._held[:1]
        self._watches = [p.register_post_accumulate_grad_hook(self._has_accumulated) for p in watched]

    def _newborns(self) -> list[nn.Parameter]:
        held = {id(p) for p in self._held}
        grown = (p for graft in self._grafts() for p in graft.parameters())
        return [p for p in grown if p.requires_grad and id(p) not in held]

    def _check_gone(self, wrapper: DistributedDataParallel) -> None:
        """Raise where DDP would wait for gradients of parameters that are the model's no more."""
        if wrapper.find_unused_parameters:
            return
        present = {id(p) for p in wrapper.module.parameters() if p.requires_grad}
        gone = sum(id(p) not in present for p in self._held)
        if gone:
            raise PreconditionFailed(
                f"DistributedDataParallel holds {gone} parameters that the model does not train any more: it was "
                "wrapped while a graft was in it that is gone, folded or frozen now; wrap the model again after each "
                "decision point at which a seed enters or leaves it, or never after the start"
            )

    def _has_accumulated(self, _parameter: Tensor) -> None:
        self._accumulated = True

    def _queue(self, _gradient: Tensor) -> None:
        """The backward has begun: be called when it ends, the whole of it, checkpointed parts included."""
        Variable._execution_engine.queue_callback(self._end_of_backward)

    def _end_of_backward(self) -> None:
        if not self._accumulated:  # `torch.autograd.grad` asked for something else
            return
        due, self._due = self._due, []
        average(due, self._mean)

    def __deepcopy__(self, _memo: Any) -> "NewbornGradients":
        return self  # which passes over any model but its own

    def __reduce__(self) -> tuple[Any, ...]:
        return _Unwatched, ()


class _Unwatched:
    """What is left of it in a pickled model."""

    def _after_forward(self, *_: Any) -> None:
        """Nothing: a copy is no part of the run."""


@torch.no_grad()
def average(parameters: Iterable[nn.Parameter], mean: Mean) -> None:
    """Give every parameter the mean of its gradient over the ranks, in one flat bucket per device and type.

    A rank without a gradient counts as zero; where no rank has one, there is none afterwards either.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    for (device, dtype), group in alike.items():
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        has_one = torch.tensor([p.grad is not None for p in group], dtype=dtype, device=device)
        flat = torch.cat([*(g.reshape(-1) for g in gradients), has_one])
        mean(flat)
        *means, somewhere = flat.split([*(p.numel() for p in group), len(group)])
        for place, (parameter, value) in enumerate(zip(group, means, strict=True)):
            if parameter.grad is not None:
                parameter.grad.copy_(value.view_as(parameter))
            elif bool(somewhere[place]):  # waits for the device, and only where a rank goes without
                parameter.grad = value.view_as(parameter).clone()


def _refuse(_gradient: Tensor) -> None:
    raise PreconditionFailed(
        "the model is trained on several ranks and was called outside DistributedDataParallel, so nobody averages "
        "its gradients and the ranks part; train the wrapper: ddp = DistributedDataParallel(model), then ddp(inputs)"
    )


def _differentiable(output: Any) -> Iterator[Tensor]:
    """Tensors of a model's output that a loss can be computed from."""
    for leaf in _pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            if leaf.requires_grad:
                yield leaf
        elif dataclasses.is_dataclass(leaf):
            for field in dataclasses.fields(leaf):
                yield from _differentiable(getattr(leaf, field.name))
