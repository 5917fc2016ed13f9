"""Memory order: which tensors an op can walk side by side, and the copies it takes where it cannot."""

import torch
from torch import Tensor


def alike(leader: Tensor, *others: Tensor) -> list[Tensor]:
    """`leader` and `others`, dense and of the leader's memory order. Only a tensor that is not so already is copied."""
    tensors = [leader, *others]
    for t in tensors:
        if not t.is_contiguous():
            break
    else:  # the usual case, on every call's path
        return tensors
    order = memory_order(leader)
    if not leader.permute(order).is_contiguous():
        leader = torch.empty_like(leader).copy_(leader)
        order = memory_order(leader)
    return [leader, *(t if t.permute(order).is_contiguous() else _copy(t, order) for t in others)]


def empty_chunk(leader: Tensor, channel_dim: int, channels: int) -> Tensor:
    """An uninitialised tensor like the dense `leader`, in its memory order, with `channels` channels."""
    shape = list(leader.shape)
    shape[channel_dim] = channels
    return torch.empty_permuted(shape, memory_order(leader), dtype=leader.dtype, device=leader.device)


def memory_order(t: Tensor) -> list[int]:
    """Dimensions from the slowest in memory to the fastest."""
    strides = t.stride()
    return sorted(range(t.ndim), key=lambda d: -strides[d])


def _copy(t: Tensor, order: list[int]) -> Tensor:
    return torch.empty_permuted(t.shape, order, dtype=t.dtype, device=t.device).copy_(t)


def extent(t: Tensor) -> tuple[int, int]:
    """The addresses from t's first byte to after its last; of a tensor with gaps, gaps included. Empty: (0, 0)."""
    if not t.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    begin = t.data_ptr()
    return begin, begin + (last + 1) * t.element_size()
