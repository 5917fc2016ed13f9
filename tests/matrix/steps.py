"""How a training step is taken: each function leaves gradients, and returns the loss."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

CLIP_NORM = 0.1
_AUTOCAST = {"autocast_bfloat16": torch.bfloat16, "autocast_float16_scaler": torch.float16}
_REENTRANT = {"checkpoint": False, "checkpoint_reentrant": True}


class Stepping:
    """One way to step, by its name in `STEPS`: forward, loss and backward of a model."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name = name
        self.model = model
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if name == "autocast_float16_scaler" else None
        self.graphs = 0  # compiled so far
        self.call: Callable[[Tensor], Tensor] = model
        if name == "compile":
            self.call = torch.compile(model, backend=self._run_as_it_is)

    def _run_as_it_is(self, graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Where every forward runs."""
        dtype = _AUTOCAST.get(self.name)
        with torch.autocast("cpu", dtype=dtype) if dtype is not None else contextlib.nullcontext():
            yield

    def forward(self, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        with self.around():
            return (call or self.call)(x)

    def backward(self, x: Tensor) -> float:
        if self.name == "accumulation":
            return sum(self._backward(chunk, 2) for chunk in x.chunk(2))
        return self._backward(x, 1)

    def step(self, optimizer: Optimizer) -> None:
        """What follows `prepare`: the optimiser's own step, through the scaler where there is one."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def prepare(self, optimizer: Optimizer) -> None:
        """Gradients as they are to be applied: unscaled, clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if self.name == "clip":
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
            assert torch.isfinite(norm)

    def _backward(self, x: Tensor, parts: int) -> float:
        if self.name in _REENTRANT:
            # a reentrant checkpoint needs an input with a gradient
            out = checkpoint(self.call, x.clone().requires_grad_(), use_reentrant=_REENTRANT[self.name])
        else:
            out = self.forward(x)
        loss = loss_of(out) / parts
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()
        return float(loss.detach())


def loss_of(out: Tensor) -> Tensor:
    return (out.double() - 1).square().mean()
