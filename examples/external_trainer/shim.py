"""Gradients for the blend ops of Esper's native library, in a trainer that has nothing else of Esper.

    torch.ops.load_library("libesper_native.so")
    from shim import blend

The library's ops carry no autograd node and refuse to run in grad mode; this file is what joins `blend` to
`blend_backward`. Copy it; it imports torch alone. What the arguments mean: docs/embedding.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def blend(
    host: Tensor,
    seeds: Sequence[Tensor],
    alphas: Tensor,
    spans: Sequence[tuple[int, int]] | None = None,
    *,
    channel_dim: int,
    convex: bool = False,
) -> Tensor:
    """`seeds` blended into `host`, differentiable once in host, seeds and alphas. `spans` None: all channels each."""
    pairs = [(0, host.shape[channel_dim])] * len(seeds) if spans is None else spans
    bounds = [bound for pair in pairs for bound in pair]
    return _Blend.apply(bounds, channel_dim % host.ndim, convex, host, alphas, *seeds)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, spans: list[int], channel_dim: int, convex: bool, host: Tensor, alphas: Tensor, *seeds: Tensor
    ) -> Tensor:
        sums = ctx.needs_input_grad[4]  # without a gradient for alphas the backward reads neither host nor seeds
        ctx.save_for_backward(alphas, *([host] if sums and convex else []), *(seeds if sums else []))
        ctx.call, ctx.sums, ctx.strides = (spans, channel_dim, convex), sums, host.stride()
        return torch.ops.esper_native.blend(host, list(seeds), alphas, spans, channel_dim, convex)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        spans, channel_dim, convex = ctx.call
        alphas, *kept = ctx.saved_tensors
        host, seeds = (kept[0], kept[1:]) if ctx.sums and convex else (None, kept)
        if grad.stride() != ctx.strides:  # it may come expanded, or in another order than host and seeds are in
            grad = torch.empty_strided(grad.shape, ctx.strides, dtype=grad.dtype, device=grad.device).copy_(grad)
        made = torch.ops.esper_native.blend_backward(grad, host, seeds, alphas, spans, channel_dim, convex)
        d_host = made[0] if convex else grad
        d_seeds = made[int(convex) : int(convex) + len(spans) // 2]
        return None, None, None, d_host, made[-1] if ctx.sums else None, *d_seeds
