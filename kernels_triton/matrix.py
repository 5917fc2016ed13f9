"""How the kernels see a dense tensor: rows x width in memory order, one channel being `unit` neighbouring columns."""

import contextlib

import torch
import triton.language as tl
from torch import Tensor


def pairs(spans: list[int]) -> list[tuple[int, int]]:
    return list(zip(spans[::2], spans[1::2], strict=True))


def fold(t: Tensor, spans: list[int], channel_dim: int) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """(rows, width, first column of each slot, column after its last)."""
    order = sorted(range(t.ndim), key=lambda d: -t.stride(d))  # slowest in memory first
    place = order.index(channel_dim)
    rows, unit = 1, 1
    for d in order[:place]:
        rows *= t.shape[d]
    for d in order[place + 1 :]:
        unit *= t.shape[d]
    width = t.shape[channel_dim] * unit
    if spans == [0, t.shape[channel_dim]]:
        return 1, rows * width, (0,), (rows * width,)  # one long row
    return rows, width, tuple(s * unit for s in spans[::2]), tuple(s * unit for s in spans[1::2])


def math_type(t: Tensor) -> tl.dtype:
    return tl.float64 if t.dtype == torch.float64 else tl.float32


def empty_chunk(t: Tensor, channel_dim: int, channels: int) -> Tensor:
    """An uninitialised tensor of t's memory order with `channels` channels."""
    shape = list(t.shape)
    shape[channel_dim] = channels
    order = sorted(range(t.ndim), key=lambda d: -t.stride(d))
    return torch.empty_permuted(shape, order, dtype=t.dtype, device=t.device)


def device_of(t: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()
