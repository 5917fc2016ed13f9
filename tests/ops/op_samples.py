"""Valid arguments of every registered operator, small or large, for what all of them must do alike.

An op of `backends.OPS` without a sample here fails test_every_op.py: add one, in the schema's order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CHANNELS, SPANS, APART = 24, [0, 16, 8, 24], [0, 9, 15, 24]  # spans that overlap, and that do not
SMALL, LARGE = 7, 20_011  # rows; the large ones are many tiles, and no multiple of one
RUNNING, RESTING = 3, 5  # states of a seed
Arguments = tuple[Any, ...]
Make = Callable[["Draw", torch.dtype, int], Arguments]


class Draw:
    """Random tensors on a device, the same each time."""

    def __init__(self, device: str) -> None:
        self.device, self.rng = device, torch.Generator().manual_seed(0)

    def normal(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng, dtype=torch.float64).to(self.device, dtype)

    def alphas(self, dtype: torch.dtype, slots: int) -> Tensor:
        math = torch.float64 if dtype == torch.float64 else torch.float32
        return torch.rand(slots, generator=self.rng, dtype=torch.float64).to(self.device, math)

    def chunks(self, dtype: torch.dtype, rows: int, spans: Sequence[int]) -> list[Tensor]:
        return [self.normal(dtype, rows, stop - start) for start, stop in zip(spans[::2], spans[1::2], strict=True)]

    def of(self, values: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)


def blend(draw: Draw, dtype: torch.dtype, rows: int, *, convex: bool) -> Arguments:
    spans = APART if convex else SPANS
    host, seeds = draw.normal(dtype, rows, CHANNELS), draw.chunks(dtype, rows, spans)
    return host, seeds, draw.alphas(dtype, 2), spans, 1, convex


def blend_backward(draw: Draw, dtype: torch.dtype, rows: int, *, convex: bool) -> Arguments:
    host, *rest = blend(draw, dtype, rows, convex=convex)
    return draw.normal(dtype, rows, CHANNELS), host if convex else None, *rest


def blend_(draw: Draw, dtype: torch.dtype, rows: int, *, convex: bool) -> Arguments:
    host, seeds, alphas, *rest = blend(draw, dtype, rows, convex=convex)
    return host, seeds, alphas, draw.of([RUNNING, RESTING], torch.uint8), 1 << RUNNING, *rest


def seed_stats(draw: Draw, dtype: torch.dtype, rows: int) -> Arguments:
    stats = torch.full((2, 8), 3.0, device=draw.device)  # the last column: the range of the histogram
    return draw.normal(dtype, rows, CHANNELS).relu(), SPANS, 1, 0.99, stats


def advance_state(draw: Draw, dtype: torch.dtype, rows: int) -> Arguments:  # noqa: ARG001  it has dtypes of its own
    alphas, ages = draw.alphas(torch.float32, 5), draw.of([0, 1, 2, 3, 4], torch.int64)
    states = draw.of([RUNNING, RUNNING, RESTING, RUNNING, RESTING], torch.uint8)
    begins, steps = draw.of([10, 12, 10, 0, 0], torch.int64), draw.of([9, 0, 9, -1, 4], torch.int64)
    mask = 1 << RUNNING
    return alphas, ages, draw.of([12], torch.int64), states, begins, steps, mask, mask | 1 << RESTING


def _both(make: Callable[..., Arguments]) -> dict[str, Make]:
    return {
        "residual": lambda *given: make(*given, convex=False),
        "convex": lambda *given: make(*given, convex=True),
    }


SAMPLES: dict[str, dict[str, Make]] = {
    "blend": _both(blend),
    "blend_backward": _both(blend_backward),
    "blend_": _both(blend_),
    "seed_stats": {"": seed_stats},
    "advance_state": {"": advance_state},
}
# What an op reads through copies where it is not dense. The others refuse it.
COPIES = {"blend": (0, 1), "blend_backward": (0, 1, 2), "blend_": (1,), "seed_stats": (0,)}


def dtypes_of(op: str) -> Sequence[torch.dtype]:
    return (torch.float32,) if op == "advance_state" else FLOATS


def arguments(op: str, form: str, dtype: torch.dtype, *, rows: int = SMALL, device: str = "cpu") -> Arguments:
    """Fresh tensors: some ops write to them."""
    return SAMPLES[op][form](Draw(device), dtype, rows)


def results(op: str, given: Arguments) -> list[Tensor]:
    """What the op returned, and every tensor it was given: those it writes to are results too."""
    with torch.no_grad():
        returned = getattr(torch.ops.esper, op)(*given)
    return [*tensors_in(returned), *tensors_in(given)]


def tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for entry in value for t in tensors_in(entry)] if isinstance(value, list | tuple) else []
