"""Paired comparison of two arms on the same held-out examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.errors import InvalidRequest, ShapeMismatch


@dataclass(frozen=True, slots=True)
class Paired:
    """Losses of an arm and its control on the same `pairs` examples, reduced.

    `standard_error` is that of the mean difference (control - arm), the unit of both means.
    """

    pairs: int
    mean: float
    control_mean: float
    standard_error: float

    @property
    def gain(self) -> float:
        """Relative reduction of the loss by the arm: 1 - mean / control_mean."""
        return (self.control_mean - self.mean) / max(abs(self.control_mean), 1e-12)

    @property
    def gain_standard_error(self) -> float:
        """Standard error of `gain`, the control mean taken as known."""
        return self.standard_error / max(abs(self.control_mean), 1e-12)

    @property
    def standard_errors(self) -> float:
        """The difference in units of its standard error; signed infinity where that is 0."""
        difference = self.control_mean - self.mean
        if self.standard_error > 0:
            return difference / self.standard_error
        return math.copysign(math.inf, difference) if difference else 0.0


def compare(arm: Tensor, control: Tensor) -> Paired:
    """Reduce two vectors of losses [N] on the same examples, in the same order.

    Raises ShapeMismatch unless both are [N] with N >= 2.
    """
    if arm.shape != control.shape or arm.ndim != 1 or arm.numel() < 2:
        raise ShapeMismatch(
            f"paired losses must be two vectors of one length >= 2; got {list(arm.shape)} and {list(control.shape)}"
        )
    arm64, control64 = arm.double(), control.double()
    spread = float((control64 - arm64).std(correction=1))
    return Paired(
        pairs=arm.numel(),
        mean=float(arm64.mean()),
        control_mean=float(control64.mean()),
        standard_error=spread / math.sqrt(arm.numel()),
    )


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 5000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Efron 1979, doi:10.1214/aos/1176344552).

    Raises InvalidRequest without a value, for one that is not finite, or for a level outside 0 to 1.
    """
    data = torch.tensor(list(values), dtype=torch.float64)
    if not len(data) or not bool(torch.isfinite(data).all()):
        raise InvalidRequest(f"an interval needs at least one value, all of them finite; got {list(values)[:8]}")
    if not 0 < level < 1:
        raise InvalidRequest(f"level must be between 0 and 1, got {level}")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(data), (resamples, len(data)), generator=generator)
    means = data[rows].mean(1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
