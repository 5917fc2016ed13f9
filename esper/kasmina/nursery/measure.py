"""Measure snapshots on held-out data, alone or against controls on the same examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.host.kept import kept_modes
from esper.kasmina.nursery.flops import FlopMeter
from esper.kasmina.nursery.port import HostRun
from esper.stats.paired import Paired, compare


@dataclass(frozen=True, slots=True)
class Reading:
    """Held-out losses [N] of one model, and its scores [N] where the task has some."""

    losses: Tensor
    scores: Tensor | None

    @property
    def loss(self) -> float:
        return float(self.losses.double().mean())

    @property
    def score(self) -> float | None:
        return None if self.scores is None else float(self.scores.double().mean())


@dataclass(frozen=True, slots=True)
class Measurement:
    """Readings of arms and controls; `paired` compares their means example by example."""

    arms: list[Reading]
    controls: list[Reading]
    paired: Paired | None
    flops: float


def measure(
    arms: Sequence[Callable[[], HostRun]], controls: Sequence[Callable[[], HostRun]], slices: Sequence[str]
) -> Measurement:
    """Read every arm and control. Each is a callable, so that one model is in memory at a time."""
    meter = FlopMeter()
    arm_readings = [_read(make(), slices, meter) for make in arms]
    control_readings = [_read(make(), slices, meter) for make in controls]
    paired = compare(_mean(arm_readings), _mean(control_readings)) if control_readings else None
    return Measurement(arm_readings, control_readings, paired, meter.total)


def read(run: HostRun, slices: Sequence[str]) -> Reading:
    """Losses and scores of a run's model on held-out slices, in eval mode without grad."""
    return _read(run, slices, FlopMeter())


def _read(run: HostRun, slices: Sequence[str], meter: FlopMeter) -> Reading:
    losses, scores = [], []
    read_id = object()  # not id(run): the next run may be made where this one was
    with kept_modes(run.model), torch.no_grad():
        run.model.eval()
        for index, batch in enumerate(run.held_out(slices)):
            outputs = meter.run((read_id, index), lambda b=batch: run.outputs(run.model, b))  # type: ignore[misc]
            losses.append(run.losses(outputs, batch).reshape(-1))
            score = run.scores(outputs, batch)
            if score is not None:
                scores.append(score.reshape(-1))
    return Reading(torch.cat(losses), torch.cat(scores) if scores else None)


def _mean(readings: list[Reading]) -> Tensor:
    """Each example's loss, averaged over snapshots: less noisy than any one of them."""
    return torch.stack([reading.losses.double() for reading in readings]).mean(0)
