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

`blend_` does the same in place, over the slots whose lifecycle state is among those asked for: state is read on the
device, and of a slot that takes no part neither chunk nor seed is read or written.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import Parameter

from esper.errors import Unavailable
from esper.ops import backends, layout
from esper.ops.backends import expression_is_faster
from esper.ops.blend_arguments import Spans, checked
from esper.ops.blend_in_place_arguments import check_apart, check_differentiable, check_in_place
from esper.ops.gates import among

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


def blend_(
    host: Tensor,
    seeds: Sequence[Tensor],
    alphas: Tensor | Sequence[Tensor],
    states: Tensor,
    active: int,
    spans: Spans | None = None,
    *,
    channel_dim: int,
    convex: bool = False,
) -> Tensor:
    """Blend into `host` itself, over the slots that take part. Returns host.

    states  uint8 [S], the slots' lifecycle states, on the host's device
    active  bit mask of the states that take part, see `esper.ops.state_mask`
    The other arguments are `blend`'s; host must be dense in its own memory order, since nothing is copied.

    Differentiable in host and seeds, in the residual form in alphas too; what takes no part has gradient 0. Not after
    an op that keeps its output for its backward, relu or softmax for instance: that output would be overwritten.

    Raises what `blend` raises, and InvalidRequest where host may not be overwritten: it has gaps, shares memory with
    a seed or with itself, is a leaf that requires a gradient, or is kept by the op that made it, which is named; and
    for the convex form with a gradient for alphas, which would need the host as it was.
    """
    seeds, alphas, bounds, dim = checked(host, seeds, alphas, spans, channel_dim, convex)
    call = (bounds, dim, convex)
    if _is_compiling() or torch._C._are_functorch_transforms_active():
        check_in_place(host, seeds, alphas, states, active, convex)
        blend__reference(host, seeds, alphas, states, active, *call)
    elif type(host) is not Tensor and type(host) is not Parameter:
        torch.ops.esper.blend_(host, seeds, alphas, states, active, *call)
    elif needs_gradient(host, seeds, alphas):
        check_in_place(host, seeds, alphas, states, active, convex)
        check_differentiable(host)
        check_apart(host, seeds, alphas, states)
        BlendInPlace.apply(run_in_place, *call, active, host, alphas, states, *seeds)  # type: ignore[no-untyped-call]
    else:
        run_in_place(host, seeds, alphas, states, active, *call)
    return host


def needs_gradient(host: Tensor, seeds: Sequence[Tensor], alphas: Tensor) -> bool:
    """Whether the call must leave a node in the autograd graph."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (host, alphas, *seeds))


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


def blend__reference(
    host: Tensor,
    seeds: Sequence[Tensor],
    alphas: Tensor,
    states: Tensor,
    active: int,
    spans: list[int],
    channel_dim: int,
    convex: bool,
) -> None:
    """The definition of `blend_`. Takes alphas and states [..., S] with the host's leading dimensions too."""
    form = torch.lerp if convex else torch.addcmul
    taking, out = among(states, active), host.to(alphas.dtype)
    for slot, seed in enumerate(seeds):
        start, stop = spans[2 * slot : 2 * slot + 2]
        chunk = out.narrow(channel_dim, start, stop - start)
        blended = form(chunk, seed.to(alphas.dtype), _of_slot(alphas, slot, host.ndim))
        chosen = torch.where(_of_slot(taking, slot, host.ndim), blended, chunk)
        out = out.slice_scatter(chosen, channel_dim, start, stop)
    host.copy_(out)


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


def run_in_place(
    host: Tensor,
    seeds: Sequence[Tensor],
    alphas: Tensor,
    states: Tensor,
    active: int,
    spans: list[int],
    channel_dim: int,
    convex: bool,
) -> None:
    """The chosen implementation of `blend_`, checked for what blend does not check. Raises InvalidRequest.

    The library checks for itself, in a twentieth of the time, so it is only asked what is wrong when it has refused.
    """
    implementation = backends.pick("blend_", "cpu" if host.is_cpu else host.device.type)
    try:
        if not backends.checks_itself(implementation):
            check_in_place(host, seeds, alphas, states, active, convex)
            check_apart(host, seeds, alphas, states)
        dense = layout.alike(host, *seeds)[1:]  # of a host with gaps it is a copy's order, and the library refuses
        if any(copy is not seed for copy, seed in zip(dense, seeds, strict=True)):
            check_apart(host, seeds, alphas, states)  # the library sees copies
        alphas = alphas if alphas.is_contiguous() else alphas.contiguous()
        if torch.is_grad_enabled():
            with torch.no_grad():
                implementation(host, dense, alphas, states, active, spans, channel_dim, convex)
        else:
            implementation(host, dense, alphas, states, active, spans, channel_dim, convex)
    except (RuntimeError, TypeError):
        check_in_place(host, seeds, alphas, states, active, convex)
        check_apart(host, seeds, alphas, states)
        raise
    torch.autograd.graph.increment_version(host)


class BlendInPlace(torch.autograd.Function):
    """The gradient of `blend_`: `blend`'s, with alpha 0 where a slot took no part.

    `run` does the work: an implementation, or the operator where a tensor subclass or a dispatch mode must see it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., None],
        spans: list[int],
        channel_dim: int,
        convex: bool,
        active: int,
        host: Tensor,
        alphas: Tensor,
        states: Tensor,
        *seeds: Tensor,
    ) -> Tensor:
        ctx.mark_dirty(host)
        ctx.call, ctx.sums = (spans, channel_dim, convex), ctx.needs_input_grad[6]
        ctx.save_for_backward(alphas, among(states, active), *(seeds if ctx.sums else ()))
        run(host, list(seeds), alphas, states, active, spans, channel_dim, convex)
        return host

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        alphas, taking, *seeds = ctx.saved_tensors
        differentiate = run_backward
        if torch.is_grad_enabled():  # of what took no part not even a NaN may reach the second derivative
            differentiate = blend_backward_reference
            seeds = [torch.where(taking[slot], seed, 0) for slot, seed in enumerate(seeds)]
        made = differentiate(grad, None, seeds, torch.where(taking, alphas, 0), *ctx.call)
        d_host = made.pop(0) if ctx.call[-1] else grad
        d_alphas = torch.where(taking, made.pop(), 0) if ctx.sums else None
        d_seeds = [d_seed.masked_fill(~taking[slot], 0) for slot, d_seed in enumerate(made)]
        return None, None, None, None, None, d_host, d_alphas, None, *d_seeds
