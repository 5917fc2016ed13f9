"""Operators that look at one position at a time, linear apart: activations, scale, norm, sum and product."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.ir import ONE, Dimension
from esper.blueprint.signature import (
    Attributes,
    Binding,
    Cost,
    Count,
    Extent,
    Form,
    Operator,
    Role,
    Setting,
    Value,
    csv,
)
from esper.errors import InvalidBlueprint


def _same(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    return inputs[0]


def per_channel(inputs: tuple[Value, ...], _attributes: Attributes) -> tuple[Dimension, ...]:
    """[C] of the first input."""
    return (inputs[0].channels,)


def elementwise(binding: Binding, each: int = 1) -> Cost:
    """`each` operations for every element of the result."""
    return Cost(elementwise=Count.over(binding.extent, each * binding.channels))


def _activation(name: str, formula: str, call: Callable[[Tensor], Tensor], source: str) -> Operator:
    return Operator(name, formula, 1, _same, elementwise, lambda _binding: Form(call, source + "({0})"))


RELU = _activation("relu", "max(x, 0)", torch.relu, "torch.relu")
GELU = _activation("gelu", "x Phi(x), exact (erf)", F.gelu, "F.gelu")
SILU = _activation("silu", "x sigmoid(x)", F.silu, "F.silu")
TANH = _activation("tanh", "tanh(x)", torch.tanh, "torch.tanh")
SIGMOID = _activation("sigmoid", "1 / (1 + exp(-x))", torch.sigmoid, "torch.sigmoid")


def _broadcast(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    a, b = inputs
    if a.channels != b.channels and ONE not in (a.channels, b.channels):
        raise InvalidBlueprint(f"channels {a.channels} and {b.channels} differ; they must be equal, or one of them 1")
    full = Extent.FULL in (a.extent, b.extent)
    return Value(b.channels if a.channels == ONE else a.channels, Extent.FULL if full else Extent.POOLED)


ADD = Operator(
    "add",
    "a + b",
    2,
    _broadcast,
    elementwise,
    lambda _binding: Form(torch.add, "{0} + {1}"),
    commutative=True,
)
MUL = Operator(
    "mul",
    "a b",
    2,
    _broadcast,
    elementwise,
    lambda _binding: Form(torch.mul, "{0} * {1}"),
    commutative=True,
)


def _scale_map(x: Tensor, weight: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return x * weight.view(shape)


def _scale_form(binding: Binding) -> Form:
    if not binding.kind.channels_first:
        return Form(torch.mul, "{0} * {1}")
    shape = (-1,) + (1,) * binding.kind.position_dims
    return Form(functools.partial(_scale_map, shape=shape), f"{{0}} * {{1}}.view({csv(shape)})")


SCALE = Operator(
    "scale",
    "w[c] x[c]",
    1,
    _same,
    elementwise,
    _scale_form,
    roles=(Role("weight", per_channel),),
)


_LAST = {  # channels last and back, per kind
    Kind.MAP1D: ((0, 2, 1), (0, 2, 1)),
    Kind.MAP2D: ((0, 2, 3, 1), (0, 3, 1, 2)),
}


def _norm_last(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, channels: int, eps: float
) -> Tensor:
    return F.layer_norm(x, [channels], weight, bias, eps)


def _norm_map(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channels: int,
    eps: float,
    last: tuple[int, ...],
    back: tuple[int, ...],
) -> Tensor:
    return F.layer_norm(x.permute(last), [channels], weight, bias, eps).permute(back)


def _norm_form(binding: Binding) -> Form:
    channels, eps = binding.channels, float(binding.attributes["eps"])
    affine = ", ".join(f"{{{i}}}" if i <= binding.parameter_count else "None" for i in (1, 2))
    if binding.kind not in _LAST:
        call = functools.partial(_norm_last, channels=channels, eps=eps)
        return Form(call, f"F.layer_norm({{0}}, [{channels}], {affine}, {eps!r})")
    last, back = _LAST[binding.kind]
    turned = functools.partial(_norm_map, channels=channels, eps=eps, last=last, back=back)
    source = f"F.layer_norm({{0}}.permute({csv(last)}), [{channels}], {affine}, {eps!r}).permute({csv(back)})"
    return Form(turned, source)


def _norm_fits(binding: Binding) -> str:
    return "" if binding.channels >= 2 else f"it normalises over {binding.channels} channel; it needs at least 2"


CHANNEL_NORM = Operator(
    "channel_norm",
    "w[c] (x[c] - mean) / sqrt(var + eps) + b[c], mean and var over the channels of a position",
    1,
    _same,
    lambda binding: elementwise(binding, 5 + binding.parameter_count),
    _norm_form,
    roles=(Role("weight", per_channel, optional=True), Role("bias", per_channel, optional=True)),
    settings=(Setting("eps", float, default=1e-5, low=1e-12, high=1.0),),
    fits=_norm_fits,
)

ROWS = (RELU, GELU, SILU, TANH, SIGMOID, ADD, MUL, SCALE, CHANNEL_NORM)
