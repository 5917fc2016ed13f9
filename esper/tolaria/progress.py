"""Where training is: losses and times, gathered without making a step wait."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsFloat

import torch
from torch import Tensor

from esper.api.common.v1 import seed_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.kasmina.table import Seed

# A model's grafts: (site, slot, artifact id, step of insertion) of each.
Structure = frozenset[tuple[str, int, str, int]]


@dataclass(slots=True)
class Progress:
    """Losses read one step late, so that a device never has to be waited for inside a step."""

    mean: float = math.nan  # exponential, about 50 steps
    losses: list[float] = field(default_factory=list)  # since the last message
    step_ns: list[int] = field(default_factory=list)  # since the last message
    inside_ns: list[int] = field(default_factory=list)  # time inside Esper, per step, since the last message
    stalled_steps: int = 0
    _late: SupportsFloat | None = None

    def put(self, loss: SupportsFloat) -> float | None:
        """Take this step's loss, a tensor or what will be read as a number then, and return the last one's."""
        ready = None if self._late is None else float(self._late)
        if isinstance(loss, Tensor):
            self._late = loss.detach()
        else:
            self._late = torch.tensor(loss) if isinstance(loss, float | int) else loss
        if ready is not None:
            self._remember(ready)
        return ready

    @property
    def late(self) -> float | None:
        """The last step's loss, which is not counted yet. Waits for the device."""
        return None if self._late is None else float(self._late)

    def resume(self, mean: float, late: float | None) -> None:
        """Begin again with what a checkpoint has."""
        self.mean, self._late = mean, late

    def go_back(self, mean: float) -> None:
        """After a rollback, to a state whose mean loss was `mean`: the later losses are of steps that were undone."""
        self.mean, self._late = mean, None

    def took(self, step_ns: int, inside_ns: int) -> None:
        """One step's time outside and inside Esper."""
        self.step_ns.append(step_ns)
        self.inside_ns.append(inside_ns)

    def took_inside(self, inside_ns: int) -> None:
        """A decision point belongs to the step before it."""
        if self.inside_ns:
            self.inside_ns[-1] += inside_ns

    def take_inside_us(self) -> list[float]:
        """Time inside Esper of each step since the last call, in microseconds."""
        taken, self.inside_ns = self.inside_ns, []
        return [ns / 1e3 for ns in taken]

    def _remember(self, loss: float) -> None:
        self.losses.append(loss)
        if math.isfinite(loss):
            self.mean = loss if math.isnan(self.mean) else self.mean + 0.02 * (loss - self.mean)

    def message(self, step: int, parameters: int, seeds: list[Seed]) -> trainer_pb2.Progress:
        """What happened since the last message."""
        message = trainer_pb2.Progress(
            step=step,
            train_loss=self.mean if math.isfinite(self.mean) else 0.0,
            step_us_p50=statistics.median(self.step_ns) / 1e3 if self.step_ns else 0.0,
            stalled_steps=self.stalled_steps,
            losses=self.losses,
            first_loss_step=max(0, step - len(self.losses)),
            loss_every_steps=1,
            parameters=parameters,
            alphas={str(seed.id): seed.alpha for seed in seeds},
        )
        self.losses, self.step_ns = [], []
        return message


@dataclass(frozen=True, slots=True)
class Measured:
    """A validated state: its loss, its file and the grafts in it."""

    step: int
    loss: float
    path: Path
    grafts: tuple[seed_pb2.Graft, ...]

    @property
    def structure(self) -> Structure:
        return frozenset((g.seed.site, g.seed.slot, g.artifact_id, g.inserted_step) for g in self.grafts)


@dataclass(slots=True)
class Validations:
    """Validation losses as they come back; the best state is kept for each structure the model has had.

    Which structure may be returned to is known only at the end: a graft that was best
    while it was on trial may have been culled since.
    """

    latest: tuple[int, float] | None = None
    kept: dict[Structure, Measured] = field(default_factory=dict)

    @property
    def best(self) -> Measured | None:
        return min(self.kept.values(), key=lambda m: m.loss, default=None)

    def take(self, measured: Measured) -> Measured | None:
        """Take one measurement; returns the state that need not be kept: a beaten one, or this one."""
        if self.latest is None or measured.step > self.latest[0]:
            self.latest = (measured.step, measured.loss)
        before = self.kept.get(measured.structure)
        if not math.isfinite(measured.loss) or (before is not None and measured.loss >= before.loss):
            return measured
        self.kept[measured.structure] = measured
        return before

    def forget_after(self, step: int) -> None:
        """The run went back: the latest loss is not of a state that was undone. What is kept is as good as it was."""
        if self.latest is not None and self.latest[0] > step:
            self.latest = None

    def best_within(self, allowed: Structure) -> Measured | None:
        """The best state whose grafts are all among `allowed` and at their full weight."""
        whole = (m for s, m in self.kept.items() if s <= allowed and all(g.alpha == 1 for g in m.grafts))
        return min(whole, key=lambda m: m.loss, default=None)
