"""What seed_stats accepts. Each refusal names the argument, the value, the limit and the remedy."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from esper.errors import InvalidRequest, ShapeMismatch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COLUMNS = 8


def checked(
    values: Tensor, stats: Tensor, spans: Sequence[tuple[int, int]] | None, channel_dim: int, decay: float
) -> tuple[list[int], int]:
    """(start and stop of each slot in turn, channel_dim counted from the front).

    Raises ShapeMismatch and InvalidRequest.
    """
    if values.dtype not in DTYPES:
        refuse(InvalidRequest, "values", f"has dtype {values.dtype}; supported are {', '.join(map(str, DTYPES))}")
    if values.layout is not torch.strided:
        refuse(InvalidRequest, "values", f"has layout {values.layout}; only strided tensors are read, use .to_dense()")
    if not -values.ndim <= channel_dim < values.ndim:
        limit = f"values {list(values.shape)} has dimensions {-values.ndim} to {values.ndim - 1}"
        refuse(ShapeMismatch, "channel_dim", f"is {channel_dim}; {limit}")
    channels = values.shape[channel_dim]
    pairs = [(0, channels)] if spans is None else spans
    if not pairs:
        refuse(InvalidRequest, "spans", "is empty; give one (start, stop) a row of stats, or None for all channels")
    for slot, (start, stop) in enumerate(pairs):
        if not 0 <= start <= stop <= channels:
            said = f"is ({start}, {stop}); it must lie in (0, {channels}), the channels"
            refuse(ShapeMismatch, f"spans[{slot}]", said)
    if not 0 <= decay <= 1:
        refuse(InvalidRequest, "decay", f"is {decay}; it must be 0 to 1")
    _check_stats(values, stats, len(pairs))
    return [bound for pair in pairs for bound in pair], channel_dim % values.ndim


def _check_stats(values: Tensor, stats: Tensor, slots: int) -> None:
    if stats.shape != (slots, COLUMNS):
        refuse(ShapeMismatch, "stats", f"is {list(stats.shape)}; it must be [{slots}, {COLUMNS}], a row per slot")
    if stats.dtype != torch.float32:
        refuse(InvalidRequest, "stats", f"has dtype {stats.dtype}; it must be float32, whatever the dtype of values")
    if stats.device != values.device:
        refuse(InvalidRequest, "stats", f"is on {stats.device}, values on {values.device}; keep it beside values")
    if stats.layout is not torch.strided or not stats.is_contiguous():
        refuse(InvalidRequest, "stats", f"has strides {stats.stride()}; it is written in place and must be contiguous")
    if stats.requires_grad:
        refuse(InvalidRequest, "stats", "requires a gradient; statistics have none, use .detach()")


def check_apart(values: Tensor, stats: Tensor) -> None:
    """Refuse stats that lie inside values' memory. For tensors that have memory."""
    if values.numel() and values.untyped_storage().data_ptr() == stats.untyped_storage().data_ptr():
        first, last = _bytes(values)
        begin, end = _bytes(stats)
        if first < end and begin < last:
            said = "shares memory with values; it is written while values are read, so give it its own"
            refuse(InvalidRequest, "stats", said)


def _bytes(t: Tensor) -> tuple[int, int]:
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (reach + 1) * t.element_size()


def refuse(error: type[InvalidRequest], argument: str, reason: str) -> NoReturn:
    """Raise `error` about `argument`."""
    raise error(f"seed_stats: {argument} {reason}", {argument: reason})
