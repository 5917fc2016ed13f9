"""Inputs of seed_stats for tests: named cases, drawn ones, and what a right row may differ by."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from esper.ops import seed_stats, seed_stats_reference
from esper.ops.seed_stats import ABS_MAX, COLUMNS, DEAD_RATIO, ENTROPY, LIMIT, MEAN, NON_FINITE, VARIANCE, ZERO_RATIO

from .blend_cases import laid_out


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    channel_dim: int
    spans: tuple[tuple[int, int], ...] | None = None  # None: one slot over all channels
    layout: str = "contiguous"

    def __str__(self) -> str:
        spans = "whole" if self.spans is None else "+".join(f"{a}:{b}" for a, b in self.spans)
        return f"{'x'.join(map(str, self.shape))}-{spans}-{self.layout}"

    @property
    def slots(self) -> int:
        return 1 if self.spans is None else len(self.spans)

    @property
    def bounds(self) -> list[int]:
        pairs = self.spans if self.spans is not None else ((0, self.shape[self.channel_dim]),)
        return [bound for pair in pairs for bound in pair]


CASES = [
    Case((1,), 0),
    Case((7, 131), -1),
    Case((131, 7), 0),
    Case((3, 5, 9), -1, ((2, 5), (0, 9), (4, 9))),  # overlapping slots
    Case((2, 6, 33), 1, ((1, 3), (5, 6))),
    Case((2, 6, 3, 5), 1, ((0, 2), (2, 6))),
    Case((2, 8, 3, 4), 1, ((0, 4), (2, 8)), "channels_last"),
    Case((3, 4, 6), -1, ((1, 5),), "strided"),
    Case((3, 4, 6), 2, layout="transposed"),
    Case((0, 5), -1),
    Case((3, 0, 2), 1),
    Case((2, 3, 0), 1, ((1, 2),)),
    Case((3, 4), -1, ((2, 2), (0, 4))),  # a slot of no channels
    Case((700, 1), 1),
]

MANY = [
    Case((3, 70_001), -1),  # several tiles to a row
    Case((3, 20_000), -1, ((0, 19_999), (3, 20_000))),
    Case((900, 37), -1, ((5, 20), (20, 37))),  # several rows to a tile
    Case((2, 5, 90, 91), 1, ((1, 4),)),
    Case((2, 5, 90, 91), 1, layout="channels_last"),
]


def make(case: Case, dtype: torch.dtype, *, seed: int = 0, mean: float = 0.0, device: str = "cpu") -> Tensor:
    """Numbers of variance 1 about `mean`, a third of them 0 where that is 0, the first channel all of it."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(case.shape, generator=rng, dtype=torch.float64) + mean
    if mean == 0:
        values[torch.rand(case.shape, generator=rng) < 1 / 3] = 0
        if case.shape[case.channel_dim]:
            values.select(case.channel_dim, 0).zero_()
    return laid_out(values.to(device, dtype), case.layout)


def table(slots: int, limit: float = 2.0, device: str = "cpu") -> Tensor:
    """Stats nobody has written yet, but for their range."""
    stats = torch.full((slots, COLUMNS), float("nan"), device=device)
    stats[:, LIMIT] = limit
    return stats


def rows(case: Case, values: Tensor, limit: float = 2.0, decay: float = 0.9) -> Tensor:
    stats = table(case.slots, limit, str(values.device))
    spans = None if case.spans is None else list(case.spans)
    seed_stats(values, stats, spans, channel_dim=case.channel_dim, decay=decay)
    return stats


def assert_right(case: Case, values: Tensor, limit: float = 2.0, decay: float = 0.9) -> None:
    """Every row is the float64 reference's."""
    got, want = rows(case, values, limit, decay), table(case.slots, limit, str(values.device))
    dim = case.channel_dim % values.ndim
    seed_stats_reference(values.double(), case.bounds, dim, decay, want)
    for slot in range(case.slots):
        start, stop = case.bounds[2 * slot : 2 * slot + 2]
        assert_row(got[slot].double(), want[slot].double(), values.narrow(dim, start, stop - start), limit)


def assert_row(got: Tensor, want: Tensor, chunk: Tensor, limit: float) -> None:
    finite = chunk[torch.isfinite(chunk)].double()
    n, eps = max(finite.numel(), 1), torch.finfo(torch.float32).eps
    largest = finite.abs().max().item() if finite.numel() else 0.0
    spread = want[VARIANCE].nan_to_num().sqrt().item()
    bounds = torch.full_like(want, 4 * eps) * want.abs()
    bounds[MEAN] += eps * finite.abs().mean().nan_to_num() if finite.numel() else 0
    # a pack's mean is rounded to float32: an error of eps * largest at most, beside the spread
    bounds[VARIANCE] += 4 * eps * largest * spread / n**0.5 + (eps * largest) ** 2
    bounds[VARIANCE] += 16 * eps * want[VARIANCE].nan_to_num()
    bounds[ENTROPY] = 1e-5 + _moved(finite, limit) / n * (1 + torch.log(torch.tensor(float(n))))
    for column in (ZERO_RATIO, DEAD_RATIO, ENTROPY):
        bounds[column] += eps
    for column in (ABS_MAX, NON_FINITE):
        bounds[column] = torch.finfo(torch.float32).tiny if column == ABS_MAX else 0
        bounds[column] += eps * want[column].nan_to_num() if chunk.dtype == torch.float64 else 0
    same = (got == want) | (got.isnan() & want.isnan())
    wrong = ~same & ~((got - want).abs() <= bounds)
    assert not wrong.any(), f"{got.tolist()}\n{want.tolist()}\n{bounds.tolist()}"


def _moved(finite: Tensor, limit: float) -> float:
    """How many elements are so near the edge of a bin that float32 may put them beyond it."""
    place = finite * (16 / limit) + 16 if limit > 0 else finite[:0]
    return float(((place - place.round()).abs() < 8e-6).sum()) * 2


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any number of dimensions from 1 to 4, sizes from 0, spans anywhere, odd tails."""
    shape = tuple(draw(st.lists(st.integers(0, 7), min_size=1, max_size=4)))
    if draw(st.booleans()):
        shape = (*shape[:-1], draw(st.integers(60, 140)))
    channel_dim = draw(st.integers(-len(shape), len(shape) - 1))
    channels = shape[channel_dim]
    anywhere = st.tuples(st.integers(0, channels), st.integers(0, channels)).map(lambda p: (min(p), max(p)))
    spans = draw(st.one_of(st.none(), st.lists(anywhere, min_size=1, max_size=3).map(tuple)))
    layouts = ["contiguous", "strided", *(["transposed"] if len(shape) > 1 else [])]
    layouts += ["channels_last"] if len(shape) == 4 else []
    return Case(shape, channel_dim, spans, draw(st.sampled_from(layouts)))
