"""Arithmetic at one position: sum, product, and a scale and a shift for each channel."""

import functools

import torch
from torch import Tensor

from esper.blueprint.ir import ONE
from esper.blueprint.rules import channel_shape, elementwise, per_channel, same, viewed
from esper.blueprint.signature import Attributes, Binding, Extent, Form, Operator, Role, Value
from esper.errors import InvalidBlueprint


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
    shape = channel_shape(binding.kind)
    call = functools.partial(_scale_map, shape=shape) if shape else torch.mul
    return Form(call, f"{{0}} * {viewed('{1}', binding.kind)}")


SCALE = Operator(
    "scale",
    "w[c] x[c]",
    1,
    same,
    elementwise,
    _scale_form,
    roles=(Role("weight", per_channel),),
)


def _bias_map(x: Tensor, bias: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return x + bias.view(shape)


def _bias_form(binding: Binding) -> Form:
    shape = channel_shape(binding.kind)
    call = functools.partial(_bias_map, shape=shape) if shape else torch.add
    return Form(call, f"{{0}} + {viewed('{1}', binding.kind)}")


BIAS = Operator(
    "bias",
    "x[c] + b[c]",
    1,
    same,
    elementwise,
    _bias_form,
    roles=(Role("bias", per_channel),),
)

ROWS = (ADD, MUL, SCALE, BIAS)
