"""seed_stats: what is there in each slot's chunk of a tensor, in one pass over it and without a wait for the device.

A row of `stats` has eight float32 columns, named by the constants below:

    MEAN, VARIANCE   of the chunk's finite elements; the variance is the population's
    ZERO_RATIO       share of finite elements that are 0
    DEAD_RATIO       share of channels all of whose elements are 0
    ENTROPY          nats, 0 to ln 32, of a histogram of 32 equal bins over [-A, A]; what lies beyond is in the end bins
    ABS_MAX          largest magnitude of a finite element
    NON_FINITE       how many elements are not finite
    LIMIT            read: A; written: max(ABS_MAX, decay * A), the range for the next call

One pass suffices because A is the range that earlier calls have seen. Where it is not positive and finite, as before
the first call, or below 2**-120, ENTROPY is NaN: it was not measured. So is everything but NON_FINITE and LIMIT where
no element is finite; LIMIT stays, and DEAD_RATIO is NaN only where the chunk has no elements.

Sums are taken pack by pack about the pack's own mean and joined in float64 (Chan, Golub and LeVeque 1979, "Updating
formulae and a pairwise algorithm for computing sample variances"), so data far from 0 keep their variance. What is
float64 is counted in float64, all else in float32. A result depends on shape and values alone: not on threads, and
not on the run.
"""

import torch
from torch import Tensor

from esper.ops import backends, layout
from esper.ops.seed_stats_arguments import checked

MEAN, VARIANCE, ZERO_RATIO, DEAD_RATIO, ENTROPY, ABS_MAX, NON_FINITE, LIMIT = range(8)
COLUMNS = 8
BINS = 32
SMALLEST_LIMIT = 2.0**-120  # below it bins per unit of value are no float32


def seed_stats(
    values: Tensor,
    stats: Tensor,
    spans: list[tuple[int, int]] | None = None,
    *,
    channel_dim: int,
    decay: float = 0.99,
) -> None:
    """Write one row of `stats` per slot of `values`, all slots in one call. Nothing is read by Python.

    values       [..., C, ...], float32, float64, bfloat16 or float16, strided
    stats        [S, 8] float32, contiguous, on values' device; columns as above, LIMIT read and written
    spans        (start, stop) channels of each slot, which may overlap; None for one slot over all channels
    channel_dim  which dimension holds channels: 1 for maps, -1 for tokens and vectors
    decay        0 to 1: how much of LIMIT stays where a chunk does not reach it

    Not differentiable: `values` may require a gradient and none is recorded. Autocast leaves it alone. Under vmap the
    batch is more rows of a chunk, or, where stats have the batch too, each example has rows of its own. A tensor that
    is not dense is copied.

    Raises ShapeMismatch, or InvalidRequest for a dtype, device, layout, overlap or decay; Unavailable where
    ESPER_KERNELS forces a backend that is absent.
    """
    bounds, dim = checked(values, stats, spans, channel_dim, decay)
    torch.ops.esper.seed_stats(values, bounds, dim, decay, stats)


def seed_stats_reference(values: Tensor, spans: list[int], channel_dim: int, decay: float, stats: Tensor) -> None:
    """The definition, in float64: every other implementation is tested against it."""
    with torch.no_grad():
        for slot, row in enumerate(stats.unbind()):
            start, stop = spans[2 * slot : 2 * slot + 2]
            row.copy_(_row(values.narrow(channel_dim, start, stop - start), channel_dim, decay, row[LIMIT].double()))


def _row(chunk: Tensor, channel_dim: int, decay: float, limit: Tensor) -> Tensor:
    """[8] float64. Everything stays on the device, so what is not there is NaN by arithmetic: 0 / 0."""
    x, finite = chunk.double(), torch.isfinite(chunk)
    x = torch.where(finite, x, 0.0)
    count, zero = finite.sum().double(), finite & (chunk == 0)
    others = [d for d in range(chunk.ndim) if d != channel_dim]
    dead = zero.all(others) if others else zero
    mean = x.sum() / count
    variance = torch.where(finite, (x - mean).square(), 0.0).sum() / count
    abs_max = x.abs().amax() if chunk.numel() else torch.full_like(count, torch.nan)
    abs_max = torch.where(count > 0, abs_max, torch.nan)
    dead_ratio = dead.double().mean() if chunk.numel() else torch.full_like(count, torch.nan)
    faded = torch.where((limit > 0) & torch.isfinite(limit), decay * limit, 0.0)
    after = torch.where(count > 0, torch.maximum(abs_max, faded), limit)
    zero_ratio, non_finite = zero.sum() / count, (~finite).sum().double()
    entropy = _entropy(x, finite, limit)
    return torch.stack([mean, variance, zero_ratio, dead_ratio, entropy, abs_max, non_finite, after])


def _entropy(x: Tensor, finite: Tensor, limit: Tensor) -> Tensor:
    measured = (limit >= SMALLEST_LIMIT) & torch.isfinite(limit)
    place = x * (BINS / 2 / torch.where(measured, limit, 1.0)) + BINS / 2
    bins = place.clamp(0, BINS - 1).long().flatten()
    counts = torch.zeros(BINS, dtype=torch.float64, device=x.device).scatter_add(0, bins, finite.double().flatten())
    shares = counts / counts.sum()
    return torch.where(measured, -torch.xlogy(shares, shares).sum(), torch.nan)


def run(values: Tensor, spans: list[int], channel_dim: int, decay: float, stats: Tensor) -> None:
    """The chosen implementation."""
    dense = layout.alike(values)[0]
    backends.pick("seed_stats", values.device.type)(dense, spans, channel_dim, decay, stats)
