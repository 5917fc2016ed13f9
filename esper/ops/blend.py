"""blend: let grafted seeds into their host by degrees.

    residual   out = host + sum_s alpha_s * g_s     over the channels of slot s; slots may overlap
    convex     out = host + alpha_s * (g_s - host)  one slot per channel; alpha 0 is the host, alpha 1 the seed, exactly

Shapes: host [..., C, ...] with C in `channel_dim`; g_s the same with stop_s - start_s channels; alphas [S] on the
host's device and never a Python number, so that a ramp is an update in place. Channels no slot covers pass through.

Arithmetic is float32 (float64 for float64 tensors) whatever the tensors' dtype; the result has the host's dtype and
layout. Gradients, which one launch computes together:

    residual   d_host = d_out                                d_g_s = alpha_s d_out   d_alpha_s = sum d_out g_s
    convex     d_host = (1 - alpha_s) d_out, else d_out      d_g_s = alpha_s d_out   d_alpha_s = sum d_out (g_s - host)

Without a gradient for alphas neither host nor seeds are kept for the backward. Second derivatives go through
`blend_backward_reference`, which torch can differentiate.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import Parameter

from esper.errors import Unavailable
from esper.ops import backends, layout
from esper.ops.backends import expression_is_faster
from esper.ops.blend_arguments import Spans, checked

# A name costs less than an attribute, and the usual call has 1 us to spend.
_ONE, _FLOAT32, _lerp, _addcmul = (1,), torch.float32, torch.lerp, torch.addcmul
_HALVES = (torch.bfloat16, torch.float16)
_is_compiling, _is_dynamo = torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling


def blend(
    host: Tensor,
    seeds: Sequence[Tensor],
    alphas: Tensor | Sequence[Tensor],
    spans: Spans | None = None,
    *,
    channel_dim: int,
    convex: bool = False,
) -> Tensor:
    """Blend `seeds` into `host` by `alphas`, all slots in one launch. Returns the host's shape, dtype and layout.

    host         [..., C, ...], float32, float64, bfloat16 or float16, strided
    seeds        S tensors shaped like host but for their channels
    alphas       [S] float32 (or float64 beside a float64 host), or a list of S one-element tensors
    spans        (start, stop) channels of each slot; None where every slot covers all channels
    channel_dim  which dimension holds channels: 1 for maps, -1 for tokens and vectors
    convex       the convex form; its slots must not overlap

    Differentiable in host, seeds and alphas, twice. Under autocast a seed of another floating dtype is cast to the
    host's, so that a graft never changes its site's dtype. Under torch.compile and torch.func this is a plain torch
    expression: Inductor fuses it with its neighbours. A tensor that is not dense in the host's memory order is copied.

    Raises ShapeMismatch, or InvalidRequest for a dtype, device, layout or overlap; Unavailable where ESPER_KERNELS
    forces a backend that is absent.
    """
    if spans is None and len(seeds) == 1 and type(alphas) is Tensor and not _is_dynamo():
        seed = seeds[0]  # the usual call; where it is small it is kept within about 1 us of torch's own
        if (
            host.dtype is seed.dtype is alphas.dtype is _FLOAT32
            and seed.shape == host.shape
            and alphas.shape == _ONE
            and host.is_cpu
            and (ours_from := backends.ours_from)  # `expression_is_faster`, without the call
            and (not alphas.requires_grad or host.numel() < ours_from)
        ):
            try:
                return _lerp(host, seed, alphas) if convex else _addcmul(host, seed, alphas)
            except RuntimeError:
                pass  # torch's refusal does not name the argument; the checks below do
        elif (
            host.dtype in _HALVES
            and not torch.is_grad_enabled()
            and (out := _as_it_is(host, seed, alphas, channel_dim, convex)) is not None
        ):
            return out
    seeds, alphas, bounds, dim = checked(host, seeds, alphas, spans, channel_dim, convex)
    if _is_compiling() or torch._C._are_functorch_transforms_active():
        return blend_reference(host, seeds, alphas, bounds, dim, convex)
    if spans is None and len(seeds) == 1 and host.dtype is alphas.dtype and expression_is_faster(host, alphas):
        return blend_reference(host, seeds, alphas, bounds, dim, convex)
    if type(host) is not Tensor and type(host) is not Parameter:  # a subclass sees one operator
        return torch.ops.esper.blend(host, seeds, alphas, bounds, dim, convex)  # type: ignore[no-any-return]
    if torch.is_grad_enabled():
        return _Blend.apply(bounds, dim, convex, host, alphas, *seeds)  # type: ignore[no-any-return, no-untyped-call]
    return run(host, seeds, alphas, bounds, dim, convex)


def _as_it_is(host: Tensor, seed: Tensor, alphas: Tensor, channel_dim: int, convex: bool) -> Tensor | None:
    """One slot over a whole host in half precision on CPU, without a gradient; None where it is not just that.

    The library makes every check itself; what it refuses is left to `checked`, whose errors have a type.
    """
    if (
        type(host) is not Tensor
        or not host.is_cpu
        or _is_compiling()
        or torch._C._are_functorch_transforms_active()
        or not -host.ndim <= channel_dim < host.ndim
    ):
        return None
    try:
        native = backends.pick("blend", "cpu")
        if not isinstance(native, OpOverload) or not host.is_contiguous() or not seed.is_contiguous():
            return None
        return native(host, [seed], alphas, [0, host.shape[channel_dim]], channel_dim % host.ndim, convex)  # type: ignore[no-any-return]
    except (RuntimeError, Unavailable):
        return None


def blend_reference(
    host: Tensor, seeds: Sequence[Tensor], alphas: Tensor, spans: list[int], channel_dim: int, convex: bool
) -> Tensor:
    """The definition: every other implementation is tested against it.

    `spans` is start and stop of each slot in turn. Alone among the implementations it takes alphas [..., S] with the
    host's leading dimensions, one ramp per example.
    """
    form = torch.lerp if convex else torch.addcmul
    if seeds[0].shape == host.shape and alphas.shape == _ONE:  # [1] broadcasts like a number
        if host.dtype is alphas.dtype:
            return form(host, seeds[0], alphas)
        return form(host.to(alphas.dtype), seeds[0].to(alphas.dtype), alphas).to(host.dtype)
    out = host.to(alphas.dtype)
    for slot, seed in enumerate(seeds):
        start, stop = spans[2 * slot : 2 * slot + 2]
        chunk = out.narrow(channel_dim, start, stop - start)
        blended = form(chunk, seed.to(alphas.dtype), _of_slot(alphas, slot, host.ndim))
        out = out.slice_scatter(blended, channel_dim, start, stop)
    return out.to(host.dtype)


def _of_slot(alphas: Tensor, slot: int, ndim: int) -> Tensor:
    """alphas[..., slot], shaped to broadcast over a tensor of `ndim` dimensions from the left."""
    alpha = alphas.select(-1, slot)
    return alpha.reshape(*alpha.shape, *[1] * (ndim - alpha.ndim))


def blend_backward_reference(
    grad: Tensor,
    host: Tensor | None,
    seeds: Sequence[Tensor],
    alphas: Tensor,
    spans: list[int],
    channel_dim: int,
    convex: bool,
) -> list[Tensor]:
    """Gradients of `blend`: [d_host, if convex], one d_seed per slot, [d_alphas, if seeds are given].

    The residual form's d_host is `grad`. `host` is given where convex is true and seeds are given.
    """
    math = alphas.dtype
    d_host, d_seeds, d_alphas = grad.to(math), [], []
    for slot in range(len(spans) // 2):
        start, stop = spans[2 * slot : 2 * slot + 2]
        chunk = grad.narrow(channel_dim, start, stop - start).to(math)
        d_seed = _of_slot(alphas, slot, grad.ndim) * chunk
        d_seeds.append(d_seed.to(grad.dtype))
        if convex:
            d_host = d_host.slice_scatter(chunk - d_seed, channel_dim, start, stop)
        if seeds:
            under = 0 if host is None else host.narrow(channel_dim, start, stop - start).to(math)
            summed = tuple(range(alphas.ndim - 1, grad.ndim))
            d_alphas.append((chunk * (seeds[slot].to(math) - under)).sum(summed))
    return [*([d_host.to(grad.dtype)] if convex else []), *d_seeds, *([torch.stack(d_alphas, -1)] if d_alphas else [])]


def run(
    host: Tensor, seeds: Sequence[Tensor], alphas: Tensor, spans: list[int], channel_dim: int, convex: bool
) -> Tensor:
    """The chosen implementation. Grad mode must be off: what it returns has no history."""
    dense = layout.alike(host, *seeds)
    implementation = backends.pick("blend", "cpu" if host.is_cpu else host.device.type)
    return implementation(dense[0], dense[1:], alphas.contiguous(), spans, channel_dim, convex)  # type: ignore[no-any-return]


def run_backward(
    grad: Tensor,
    host: Tensor | None,
    seeds: Sequence[Tensor],
    alphas: Tensor,
    spans: list[int],
    channel_dim: int,
    convex: bool,
) -> list[Tensor]:
    if host is None:
        grad, *dense = layout.alike(grad, *seeds)
    else:
        grad, host, *dense = layout.alike(grad, host, *seeds)
    implementation = backends.pick("blend_backward", "cpu" if grad.is_cpu else grad.device.type)
    return implementation(grad, host, dense, alphas.contiguous(), spans, channel_dim, convex)  # type: ignore[no-any-return]


def keep(ctx: Any, host: Tensor, seeds: Sequence[Tensor], alphas: Tensor, call: tuple[Any, ...], sums: bool) -> None:
    """Save for the backward what it reads, and no more."""
    ctx.call, ctx.sums = call, sums
    if not sums:
        ctx.save_for_backward(alphas)
    elif call[-1]:  # convex
        ctx.save_for_backward(alphas, host, *seeds)
    else:
        ctx.save_for_backward(alphas, *seeds)


def gradients(ctx: Any, grad: Tensor, backward: Any) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """(d_host, d_seeds, d_alphas), by `backward`, or by the reference where the gradient is itself differentiated."""
    alphas, *kept = ctx.saved_tensors
    convex = ctx.call[-1]
    host = kept.pop(0) if ctx.sums and convex else None
    differentiate = blend_backward_reference if torch.is_grad_enabled() else backward
    made = differentiate(grad, host, kept, alphas, *ctx.call)
    d_host = made.pop(0) if convex else grad
    d_alphas = made.pop() if ctx.sums else None
    return d_host, made, d_alphas


class _Blend(torch.autograd.Function):
    """The eager path. The registered operator's own autograd costs 150 us more a step: it flattens lists as trees."""

    @staticmethod
    def forward(
        ctx: Any, spans: list[int], channel_dim: int, convex: bool, host: Tensor, alphas: Tensor, *seeds: Tensor
    ) -> Tensor:
        keep(ctx, host, seeds, alphas, (spans, channel_dim, convex), ctx.needs_input_grad[4])
        return run(host, seeds, alphas, spans, channel_dim, convex)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        d_host, d_seeds, d_alphas = gradients(ctx, grad, run_backward)
        return None, None, None, d_host, d_alphas, *d_seeds
