"""Convolution: matrices over channels and nearby positions."""

import functools

import torch.nn.functional as F
from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.ir import ONE, Dimension
from esper.blueprint.rules import out, out_channels, whole
from esper.blueprint.signature import (
    WITH_POSITIONS,
    Attributes,
    Binding,
    Cost,
    Count,
    Form,
    Operator,
    Positions,
    Role,
    Setting,
    Value,
    need_positions,
)
from esper.errors import InvalidBlueprint

_GROUPS = ("dense", "depthwise", "2", "4", "8", "16")


def _fan_in(inputs: tuple[Value, ...], attributes: Attributes) -> Dimension:
    """Channels that one output channel looks at."""
    groups, channels = str(attributes["groups"]), inputs[0].channels
    if groups == "depthwise":
        return ONE
    return channels if groups == "dense" else channels.part(int(groups))


def _result(inputs: tuple[Value, ...], attributes: Attributes) -> Value:
    need_positions(inputs)
    _fan_in(inputs, attributes)  # a constant that has no such parts is refused here
    if attributes["groups"] == "depthwise" and out(attributes) != inputs[0].channels:
        raise InvalidBlueprint(f"depthwise with out {out(attributes)}; it must equal the input's {inputs[0].channels}")
    return Value(out(attributes))


def _weight(inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    return (out(attributes), _fan_in(inputs, attributes), Dimension(minimum=whole(attributes, "kernel")))


def _map(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    rank: int,
    past: int,
    padding: int,
    groups: int,
    dilation: int,
) -> Tensor:
    if past:
        x = F.pad(x, [past, 0])
    if rank == 2:
        return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=groups)
    return F.conv1d(x, weight, bias, padding=padding, dilation=dilation, groups=groups)


def _tokens(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    rank: int,
    past: int,
    padding: int,
    groups: int,
    dilation: int,
) -> Tensor:
    # contiguous again: a linear layer that follows would copy anyway, and then takes its slower path
    x = x.transpose(1, 2)
    turned = _map(x, weight, bias, rank=rank, past=past, padding=padding, groups=groups, dilation=dilation)
    return turned.transpose(1, 2).contiguous()


def _groups(binding: Binding) -> int:
    word = str(binding.attributes["groups"])
    return {"dense": 1, "depthwise": binding.channels}.get(word) or int(word)


def _form(binding: Binding) -> Form:
    groups, rank, dilation = _groups(binding), binding.kind.position_dims, binding.integer("dilation")
    reach = (binding.integer("kernel") - 1) * dilation
    past, padding = (reach, 0) if binding.causal else (0, reach // 2)
    tokens = binding.kind is Kind.TOKENS
    source = "{0}.transpose(1, 2)" if tokens else "{0}"
    source = f"F.pad({source}, [{past}, 0])" if past else source
    bias = ", {2}" if binding.parameter_count == 2 else ""
    spread = f", dilation={dilation}" if dilation > 1 else ""
    source = f"{source}, {{1}}{bias}, padding={padding}, groups={groups}{spread}"
    source = f"(\n    {source}\n).transpose(1, 2).contiguous()" if tokens else f"({source})"
    call = functools.partial(
        _tokens if tokens else _map, rank=rank, past=past, padding=padding, groups=groups, dilation=dilation
    )
    return Form(call, f"F.conv{rank}d{source}")


def _cost(binding: Binding) -> Cost:
    taps = binding.integer("kernel") ** binding.kind.position_dims
    products = 2 * binding.channels * binding.inputs[0][0] // _groups(binding) * taps
    return Cost(Count(products), Count(binding.channels if binding.parameter_count == 2 else 0))


def _fits(binding: Binding) -> str:
    groups = _groups(binding)
    for name, channels in (("input", binding.inputs[0][0]), ("result", binding.channels)):
        if channels % groups:
            return f"{groups} groups do not divide the {name}'s {channels} channels"
    return ""


CONV = Operator(
    "conv",
    "sum over i and k positions around (causal: up to) each of w[o, i, k] x[i] + b[o], zeros outside",
    1,
    _result,
    _cost,
    _form,
    roles=(Role("weight", _weight, per_axis=True), Role("bias", out_channels, optional=True)),
    settings=(
        Setting("kernel", int, low=1, high=9, odd=True),
        Setting("groups", str, default="dense", words=_GROUPS),
        Setting("dilation", int, default=1, low=1, high=8, implied=True),
        Setting("out", Dimension),
    ),
    positions=Positions.LOCAL,
    kinds=WITH_POSITIONS,
    fits=_fits,
)

ROWS = (CONV,)
