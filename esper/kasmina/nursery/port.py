"""What the nursery needs of a run: a copy of the host that moves one step at a time.

Tolaria implements it from a task and a snapshot; the nursery never imports a trainer.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from esper.host.sites import Site


class TrialHost(Protocol):
    """A model that candidates are tried beside: what a trial calls, and nothing that moves the host."""

    clip_norm: float | None

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> Optimizer: ...

    @property
    def sites(self) -> Mapping[str, Site]: ...

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        """The task's forward under the task's autocast."""
        ...

    def losses(self, outputs: Any, batch: Any) -> Tensor:
        """The task's loss: [B], or a scalar."""
        ...

    def scores(self, outputs: Any, batch: Any) -> Tensor | None:
        """The task's score [B]; None where the task has none."""
        ...

    def held_out(self, slices: Iterable[str]) -> Sequence[Any]:
        """Held-out batches of several slices."""
        ...


class HostRun(TrialHost, Protocol):
    """A run's host at a step, in a process of its own."""

    step: int  # training steps done

    def batches(self, step: int) -> list[Any]:
        """Micro-batches of the step counted from 0."""
        ...

    def gradients(self) -> Tensor:
        """Zero the gradients, then forward and backward on the next step's batches. Returns the mean loss."""
        ...

    def update(self, loss: Tensor) -> None:
        """Take the step `gradients` prepared."""
        ...

    def save(self, path: Path, *, model_only: bool) -> None:
        """Write the host's state as a snapshot file."""
        ...

    def load(self, path: Path) -> None:
        """Put the host's model to the state of a snapshot file of its topology."""
        ...
