"""Operators with a weight matrix: linear over channels, conv over channels and nearby positions."""

import functools

import torch.nn.functional as F
from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.ir import ONE, Dimension
from esper.blueprint.signature import (
    WITH_POSITIONS,
    Attributes,
    Binding,
    Cost,
    Count,
    Extent,
    Form,
    Operator,
    Positions,
    Role,
    Setting,
    Value,
    csv,
    need_positions,
)
from esper.errors import InvalidBlueprint


def _out(attributes: Attributes) -> Dimension:
    out = attributes["out"]
    assert isinstance(out, Dimension)
    return out


def _out_channels(_inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    return (_out(attributes),)


def _arguments(binding: Binding, weight: str) -> str:
    """ "{0}, <weight>" or "{0}, <weight>, {2}" with a bias."""
    return f"{{0}}, {weight}" + (", {2}" if binding.parameter_count == 2 else "")


def _product_cost(binding: Binding, multiply_adds: int) -> Cost:
    bias = binding.channels if binding.parameter_count == 2 else 0
    return Cost(Count.over(binding.extent, 2 * multiply_adds), Count.over(binding.extent, bias))


# linear


def _linear_result(inputs: tuple[Value, ...], attributes: Attributes) -> Value:
    return Value(_out(attributes), inputs[0].extent)


def _linear_weight(inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    return (_out(attributes), inputs[0].channels)


def _linear_map1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shape: tuple[int, ...]) -> Tensor:
    return F.conv1d(x, weight.view(shape), bias)


def _linear_map2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shape: tuple[int, ...]) -> Tensor:
    return F.conv2d(x, weight.view(shape), bias)


def _linear_pooled(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shape: tuple[int, ...]) -> Tensor:
    return F.linear(x.flatten(1), weight, bias).view(shape)


def _linear_form(binding: Binding) -> Form:
    if not binding.kind.channels_first:
        return Form(F.linear, f"F.linear({_arguments(binding, '{1}')})")
    ones = (1,) * binding.kind.position_dims
    if binding.extent is Extent.POOLED:  # a tenth of a 1x1 convolution's time on a CPU
        shape = (-1, binding.channels, *ones)
        arguments = _arguments(binding, "{1}").replace("{0}", "{0}.flatten(1)")
        return Form(functools.partial(_linear_pooled, shape=shape), f"F.linear({arguments}).view({csv(shape)})")
    shape = (binding.channels, binding.inputs[0][0], *ones)
    name, call = ("conv1d", _linear_map1d) if len(ones) == 1 else ("conv2d", _linear_map2d)
    source = f"F.{name}({_arguments(binding, f'{{1}}.view({csv(shape)})')})"
    return Form(functools.partial(call, shape=shape), source)


LINEAR = Operator(
    "linear",
    "sum_i w[o, i] x[i] + b[o] at each position",
    1,
    _linear_result,
    lambda binding: _product_cost(binding, binding.channels * binding.inputs[0][0]),
    _linear_form,
    roles=(Role("weight", _linear_weight), Role("bias", _out_channels, optional=True)),
    settings=(Setting("out", Dimension),),
)

# conv


def _conv_result(inputs: tuple[Value, ...], attributes: Attributes) -> Value:
    need_positions(inputs)
    if attributes["groups"] == "depthwise" and _out(attributes) != inputs[0].channels:
        raise InvalidBlueprint(f"depthwise with out {_out(attributes)}; it must equal the input's {inputs[0].channels}")
    return Value(_out(attributes))


def _conv_weight(inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    kernel = attributes["kernel"]
    assert isinstance(kernel, int)
    fan_in = ONE if attributes["groups"] == "depthwise" else inputs[0].channels
    return (_out(attributes), fan_in, Dimension(minimum=kernel))


def _conv_map(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, rank: int, past: int, padding: int, groups: int
) -> Tensor:
    if past:
        x = F.pad(x, [past, 0])
    if rank == 2:
        return F.conv2d(x, weight, bias, padding=padding, groups=groups)
    return F.conv1d(x, weight, bias, padding=padding, groups=groups)


def _conv_tokens(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, rank: int, past: int, padding: int, groups: int
) -> Tensor:
    # contiguous again: a linear layer that follows would copy anyway, and then takes its slower path
    turned = _conv_map(x.transpose(1, 2), weight, bias, rank=rank, past=past, padding=padding, groups=groups)
    return turned.transpose(1, 2).contiguous()


def _conv_groups(binding: Binding) -> int:
    return binding.channels if binding.attributes["groups"] == "depthwise" else 1


def _conv_form(binding: Binding) -> Form:
    kernel, groups, rank = binding.integer("kernel"), _conv_groups(binding), binding.kind.position_dims
    past, padding = (kernel - 1, 0) if binding.causal else (0, kernel // 2)
    tokens = binding.kind is Kind.TOKENS
    source = "{0}.transpose(1, 2)" if tokens else "{0}"
    source = f"F.pad({source}, [{past}, 0])" if past else source
    source = f"{_arguments(binding, '{1}').replace('{0}', source)}, padding={padding}, groups={groups}"
    source = f"(\n    {source}\n).transpose(1, 2).contiguous()" if tokens else f"({source})"
    call = _conv_tokens if tokens else _conv_map
    partial = functools.partial(call, rank=rank, past=past, padding=padding, groups=groups)
    return Form(partial, f"F.conv{rank}d{source}")


def _conv_cost(binding: Binding) -> Cost:
    taps = binding.integer("kernel") ** binding.kind.position_dims
    return _product_cost(binding, binding.channels * binding.inputs[0][0] // _conv_groups(binding) * taps)


CONV = Operator(
    "conv",
    "sum over i and k positions around (causal: up to) each of w[o, i, k] x[i] + b[o], zeros outside",
    1,
    _conv_result,
    _conv_cost,
    _conv_form,
    roles=(Role("weight", _conv_weight, per_axis=True), Role("bias", _out_channels, optional=True)),
    settings=(
        Setting("kernel", int, low=1, high=9, odd=True),
        Setting("groups", str, default="dense", words=("dense", "depthwise")),
        Setting("out", Dimension),
    ),
    positions=Positions.LOCAL,
    kinds=WITH_POSITIONS,
)


ROWS = (LINEAR, CONV)
