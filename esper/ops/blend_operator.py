"""The registered operators esper::blend, esper::blend_backward and esper::blend_.

torch.export, functorch, tensor subclasses and opcheck see these; eager calls of `esper.ops.blend` mostly go around
them, and compiled ones are plain expressions. Here are their schema, fake, gradient, vmap rule and autocast rule.
"""

from typing import Any

import torch
from torch import Tensor

from esper.errors import InvalidRequest
from esper.ops import layout
from esper.ops.blend import (
    BlendInPlace,
    blend__reference,
    blend_backward_reference,
    blend_reference,
    gradients,
    keep,
    needs_gradient,
    run,
    run_backward,
    run_in_place,
)
from esper.ops.blend_arguments import check_channel_dim, check_host, check_spans, checked
from esper.ops.blend_in_place_arguments import check_differentiable, check_in_place

ARGUMENTS = "Tensor[] seeds, Tensor alphas, int[] spans, int channel_dim, bool convex"

library = torch.library.Library("esper", "FRAGMENT")
library.define(f"blend(Tensor host, {ARGUMENTS}) -> Tensor")
library.define(f"blend_backward(Tensor grad, Tensor? host, {ARGUMENTS}) -> Tensor[]")
library.define(
    "blend_(Tensor(a!) host, Tensor[] seeds, Tensor alphas, Tensor states, int active, int[] spans, "
    "int channel_dim, bool convex) -> ()"
)


def _pairs(spans: list[int]) -> list[tuple[int, int]]:
    return list(zip(spans[::2], spans[1::2], strict=True))


@torch.no_grad()
def _blend(
    host: Tensor, seeds: list[Tensor], alphas: Tensor, spans: list[int], channel_dim: int, convex: bool
) -> Tensor:
    checked(host, seeds, alphas, _pairs(spans), channel_dim, convex)
    return run(host, seeds, alphas, spans, channel_dim, convex)


def _blend_backward(
    grad: Tensor,
    host: Tensor | None,
    seeds: list[Tensor],
    alphas: Tensor,
    spans: list[int],
    channel_dim: int,
    convex: bool,
) -> list[Tensor]:
    check_host("grad", grad)
    check_spans(_pairs(spans), grad.shape[check_channel_dim(grad, channel_dim)], convex)
    with torch.no_grad():
        return run_backward(grad, host, seeds, alphas, spans, channel_dim, convex)


def _blend_fake(host: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(host)


def _blend_backward_fake(
    grad: Tensor, _: Tensor | None, seeds: list[Tensor], alphas: Tensor, spans: list[int], dim: int, convex: bool
) -> list[Tensor]:
    grad = layout.alike(grad)[0]
    d_host = [torch.empty_like(grad)] if convex else []
    d_seeds = [layout.empty_chunk(grad, dim, stop - start) for start, stop in _pairs(spans)]
    return [*d_host, *d_seeds, *([torch.empty_like(alphas)] if seeds else [])]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001  torch passes by name
    host, seeds, alphas, *call = inputs
    keep(ctx, host, seeds, alphas, tuple(call), alphas.requires_grad)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    d_host, d_seeds, d_alphas = gradients(ctx, grad, torch.ops.esper.blend_backward)
    return d_host, d_seeds, d_alphas, None, None, None


def _batch_first(info: Any, tensors: Any, dims: Any) -> list[Tensor]:
    """Every tensor with the batch in front, those without one repeated."""
    return [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, dims, strict=True)
    ]


def _blend_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    """With one alpha for the whole batch, the batch is one more dimension."""
    host, seeds, alphas, spans, channel_dim, convex = args
    call = (spans, channel_dim + 1, convex)
    host, *seeds = _batch_first(info, [host, *seeds], [in_dims[0], *in_dims[1]])
    if in_dims[2] is None:
        return torch.ops.esper.blend(host, seeds, alphas, *call), 0
    return blend_reference(host, seeds, alphas.movedim(in_dims[2], 0), *call), 0


def _blend_backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[list[Tensor], list[int]]:
    """d_alphas is a sum over one example, so there is an alpha for each."""
    grad, host, seeds, alphas, spans, channel_dim, convex = args
    hosts, host_dims = ([], []) if host is None else ([host], [in_dims[1]])
    moved = _batch_first(info, [grad, alphas, *hosts, *seeds], [in_dims[0], in_dims[3], *host_dims, *in_dims[2]])
    grad, alphas, *rest = moved
    host = rest.pop(0) if hosts else None
    made = blend_backward_reference(grad, host, rest, alphas, spans, channel_dim + 1, convex)
    return made, [0] * len(made)


def _autocast(device_type: str) -> Any:
    def cast(host: Tensor, seeds: list[Tensor], *rest: Any) -> Tensor:
        """A seed takes its host's dtype: a graft never changes its site's."""
        with torch.autocast(device_type, enabled=False):
            return torch.ops.esper.blend(host, [s.to(host.dtype) for s in seeds], *rest)  # type: ignore[no-any-return]

    return cast


def _blend_in_place(
    host: Tensor,
    seeds: list[Tensor],
    alphas: Tensor,
    states: Tensor,
    active: int,
    spans: list[int],
    channel_dim: int,
    convex: bool,
) -> None:
    checked(host, seeds, alphas, _pairs(spans), channel_dim, convex)
    check_in_place(host, seeds, alphas, states, active, convex)
    run_in_place(host, seeds, alphas, states, active, spans, channel_dim, convex)


def _blend_in_place_fake(
    host: Tensor, seeds: list[Tensor], alphas: Tensor, states: Tensor, active: int, _: Any, __: int, convex: bool
) -> None:
    check_in_place(host, seeds, alphas, states, active, convex)


def _blend_in_place_autograd(
    host: Tensor, seeds: list[Tensor], alphas: Tensor, states: Tensor, active: int, *call: Any
) -> None:
    """torch registers no gradient for an operator that writes to its arguments, so this is it."""
    if needs_gradient(host, seeds, alphas):
        check_in_place(host, seeds, alphas, states, active, call[-1])
        check_differentiable(host)
        BlendInPlace.apply(torch.ops.esper.blend_, *call, active, host, alphas, states, *seeds)  # type: ignore[no-untyped-call]
    else:
        with torch._C._AutoDispatchBelowAutograd():
            torch.ops.esper.blend_(host, seeds, alphas, states, active, *call)


def _blend_in_place_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[None, None]:
    """With one alpha and state a slot for the whole batch, the batch is one more dimension."""
    host, seeds, alphas, states, active, spans, channel_dim, convex = args
    if in_dims[0] is None:
        raise InvalidRequest("blend_: host has no batch, and cannot hold one result per example; use blend under vmap")
    call = (spans, channel_dim + 1, convex)
    host, *seeds = _batch_first(info, [host, *seeds], [in_dims[0], *in_dims[1]])
    if in_dims[2] is None and in_dims[3] is None:
        torch.ops.esper.blend_(host, seeds, alphas, states, active, *call)
    else:
        alphas, states = _batch_first(info, [alphas, states], in_dims[2:4])
        blend__reference(host, seeds, alphas, states, active, *call)
    return None, None


def _in_place_autocast(device_type: str) -> Any:
    def cast(host: Tensor, seeds: list[Tensor], *rest: Any) -> None:
        with torch.autocast(device_type, enabled=False):
            torch.ops.esper.blend_(host, [s.to(host.dtype) for s in seeds], *rest)

    return cast


library.impl("blend", _blend, "CompositeExplicitAutograd")
library.impl("blend_backward", _blend_backward, "CompositeExplicitAutograd")
library.impl("blend", _autocast("cpu"), "AutocastCPU")
library.impl("blend", _autocast("cuda"), "AutocastCUDA")
torch.library.register_fake("esper::blend", _blend_fake, lib=library)
torch.library.register_fake("esper::blend_backward", _blend_backward_fake, lib=library)
torch.library.register_autograd("esper::blend", _backward, setup_context=_setup_context, lib=library)
torch.library.register_vmap("esper::blend", _blend_vmap, lib=library)
torch.library.register_vmap("esper::blend_backward", _blend_backward_vmap, lib=library)
library.impl("blend_", _blend_in_place, "CompositeExplicitAutograd")
library.impl("blend_", _blend_in_place_autograd, "Autograd")
library.impl("blend_", _in_place_autocast("cpu"), "AutocastCPU")
library.impl("blend_", _in_place_autocast("cuda"), "AutocastCUDA")
torch.library.register_fake("esper::blend_", _blend_in_place_fake, lib=library)
torch.library.register_vmap("esper::blend_", _blend_in_place_vmap, lib=library)
