"""What blend_ refuses beyond what blend does: a host that may not be overwritten."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from esper.errors import InvalidRequest, ShapeMismatch
from esper.ops.blend_arguments import refuse
from esper.ops.gates import check_mask
from esper.ops.layout import extent, memory_order


def check_in_place(
    host: Tensor, seeds: Sequence[Tensor], alphas: Tensor, states: Tensor, active: int, convex: bool
) -> None:
    """Refuse states, a mask, a layout or a form that cannot be. Raises ShapeMismatch and InvalidRequest."""
    check_mask("blend_", "active", active)
    if states.shape != (len(seeds),):
        _refuse(ShapeMismatch, "states", f"is {list(states.shape)}; it must be [{len(seeds)}], one per seed")
    if states.dtype is not torch.uint8:
        _refuse(InvalidRequest, "states", f"has dtype {states.dtype}; it must be torch.uint8")
    if states.device != host.device:
        _refuse(InvalidRequest, "states", f"is on {states.device}, host on {host.device}; keep it on the host's device")
    if not states.is_contiguous():
        _refuse(InvalidRequest, "states", f"has stride {states.stride(0)}; it must be contiguous")
    if not host.is_contiguous() and not host.permute(memory_order(host)).is_contiguous():
        reason = f"{list(host.shape)} has strides {list(host.stride())}, gaps or elements that share memory"
        _refuse(InvalidRequest, "host", f"{reason}; nothing is copied in place, use .contiguous(), or blend")
    if convex and alphas.requires_grad and torch.is_grad_enabled():
        reason = "requires a gradient, which in the convex form needs the host that is overwritten"
        _refuse(InvalidRequest, "alphas", f"{reason}; use blend, or alphas.detach()")


def check_apart(host: Tensor, seeds: Sequence[Tensor], alphas: Tensor, states: Tensor) -> None:
    """Refuse memory that is both read and overwritten. Raises InvalidRequest."""
    begin, end = extent(host)
    read = [*((f"seeds[{slot}]", seed) for slot, seed in enumerate(seeds)), ("alphas", alphas), ("states", states)]
    for name, tensor in read:
        first, last = extent(tensor)
        if max(begin, first) < min(end, last):
            _refuse(InvalidRequest, "host", f"shares memory with {name}; use .clone(), or blend")


def check_differentiable(host: Tensor) -> None:
    """Refuse a host whose overwriting would spoil a gradient. Raises InvalidRequest, naming the op that made it."""
    base = host._base if host._is_view() else host
    if base is None:
        base = host
    if base.is_leaf and base.requires_grad:
        what = "is a leaf" if base is host else "is a view of a leaf"
        _refuse(InvalidRequest, "host", f"{what} that requires a gradient; its value is a parameter, use blend")
    if base is not host and not _one_view(host):
        made = host.grad_fn.name() if host.grad_fn else "torch.no_grad"
        _refuse(InvalidRequest, "host", f"is a view made by {made}, which may not be written in place; use blend")
    shares = torch._C._is_alias_of  # type: ignore[attr-defined]  # torch's stubs leave it out
    for node in (host.grad_fn, base.grad_fn):
        if node is not None and any(shares(kept, host) for kept in _kept_by(node)):
            reason = f"was made by {_op_of(node)}, which keeps its output for its own backward"
            _refuse(InvalidRequest, "host", f"{reason}; use blend")


def _one_view(host: Tensor) -> bool:
    """Whether autograd lets this view be written: not one of several made at once, nor one made without grad mode."""
    meta = torch._C._autograd
    return bool(meta._get_creation_meta(host) == meta.CreationMeta.DEFAULT)


def _kept_by(node: object) -> Iterator[Tensor]:
    """Tensors that a node of the graph has saved; none where they have been freed, since no backward will come."""
    for name in _names_of_saved(type(node)):  # type: ignore[arg-type]  # a type is hashable
        try:
            value = getattr(node, name)
        except RuntimeError:  # freed by a backward
            return
        yield from (t for t in (value if isinstance(value, list | tuple) else (value,)) if isinstance(t, Tensor))


@functools.cache
def _names_of_saved(kind: type) -> tuple[str, ...]:
    """Attributes of a kind of node that hold what it saved: torch's own are _saved_..., a Function's saved_tensors."""
    return tuple(name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors")


def _op_of(node: Any) -> str:
    """`relu` for ReluBackward0."""
    return str(node.name()).removeprefix("torch::autograd::").partition("Backward")[0].lower()


def _refuse(error: type[InvalidRequest], argument: str, reason: str) -> None:
    refuse(error, argument, reason, op="blend_")
