"""Normalisations whose statistics are of one batch element alone.

There is none over the batch: its result for one element would depend on the others, and its running
averages are state that neither the IR nor a compiled form carries.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.rules import (
    at_least_2_channels,
    channel_shape,
    elementwise,
    per_channel,
    position_axes,
    same,
    viewed,
)
from esper.blueprint.signature import (
    WITH_POSITIONS,
    Attributes,
    Binding,
    Form,
    Operator,
    Positions,
    Role,
    Setting,
    Value,
    csv,
    need_positions,
)

_EPS = Setting("eps", float, default=1e-5, low=1e-12, high=1.0)
_WEIGHT, _BIAS = Role("weight", per_channel, optional=True), Role("bias", per_channel, optional=True)
_LAST = {  # channels last and back, per kind
    Kind.MAP1D: ((0, 2, 1), (0, 2, 1)),
    Kind.MAP2D: ((0, 2, 3, 1), (0, 3, 1, 2)),
}


def _eps(binding: Binding) -> float:
    return float(binding.attributes["eps"])


def _affine(binding: Binding, count: int = 2) -> str:
    """ "{1}, None": the parameters that were given."""
    return ", ".join(f"{{{i}}}" if i <= binding.parameter_count else "None" for i in range(1, count + 1))


# channel_norm


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


def _channel_form(binding: Binding) -> Form:
    channels, eps, affine = binding.channels, _eps(binding), _affine(binding)
    if binding.kind not in _LAST:
        call = functools.partial(_norm_last, channels=channels, eps=eps)
        return Form(call, f"F.layer_norm({{0}}, [{channels}], {affine}, {eps!r})")
    last, back = _LAST[binding.kind]
    turned = functools.partial(_norm_map, channels=channels, eps=eps, last=last, back=back)
    source = f"F.layer_norm({{0}}.permute({csv(last)}), [{channels}], {affine}, {eps!r}).permute({csv(back)})"
    return Form(turned, source)


CHANNEL_NORM = Operator(
    "channel_norm",
    "w[c] (x[c] - mean) / sqrt(var + eps) + b[c], mean and var over the channels of a position",
    1,
    same,
    lambda binding: elementwise(binding, 5 + binding.parameter_count),
    _channel_form,
    roles=(_WEIGHT, _BIAS),
    settings=(_EPS,),
    fits=at_least_2_channels,
)

# rms_norm


def _rms_last(x: Tensor, weight: Tensor | None = None, *, channels: int, eps: float) -> Tensor:
    return F.rms_norm(x, [channels], weight, eps)


def _rms_map(
    x: Tensor, weight: Tensor | None = None, *, channels: int, eps: float, last: tuple[int, ...], back: tuple[int, ...]
) -> Tensor:
    return F.rms_norm(x.permute(last), [channels], weight, eps).permute(back)


def _rms_form(binding: Binding) -> Form:
    channels, eps, affine = binding.channels, _eps(binding), _affine(binding, 1)
    if binding.kind not in _LAST:
        call = functools.partial(_rms_last, channels=channels, eps=eps)
        return Form(call, f"F.rms_norm({{0}}, [{channels}], {affine}, {eps!r})")
    last, back = _LAST[binding.kind]
    turned = functools.partial(_rms_map, channels=channels, eps=eps, last=last, back=back)
    source = f"F.rms_norm({{0}}.permute({csv(last)}), [{channels}], {affine}, {eps!r}).permute({csv(back)})"
    return Form(turned, source)


RMS_NORM = Operator(
    "rms_norm",
    "w[c] x[c] / sqrt(mean of x^2 over the channels of a position + eps)",
    1,
    same,
    lambda binding: elementwise(binding, 4 + binding.parameter_count),
    _rms_form,
    roles=(_WEIGHT,),
    settings=(_EPS,),
    fits=at_least_2_channels,
)

# group_norm


def _group(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, groups: int, eps: float, turn: bool
) -> Tensor:
    if turn:
        return torch.group_norm(x.transpose(1, 2), groups, weight, bias, eps).transpose(1, 2)
    return torch.group_norm(x, groups, weight, bias, eps)


def _group_form(binding: Binding) -> Form:
    groups, eps, affine = binding.integer("groups"), _eps(binding), _affine(binding)
    turn = binding.kind is Kind.TOKENS
    x, back = ("{0}.transpose(1, 2)", ".transpose(1, 2)") if turn else ("{0}", "")
    source = f"torch.group_norm({x}, {groups}, {affine}, {eps!r}){back}"
    return Form(functools.partial(_group, groups=groups, eps=eps, turn=turn), source)


def _group_fits(binding: Binding) -> str:
    groups, channels = binding.integer("groups"), binding.channels
    if channels % groups:
        return f"{groups} groups do not divide {channels} channels"
    return "" if channels >= 2 * groups else f"{groups} groups of 1 channel; each needs at least 2"


GROUP_NORM = Operator(
    "group_norm",
    "w[c] (x[c] - mean) / sqrt(var + eps) + b[c], mean and var over a group's channels at all positions",
    1,
    same,
    lambda binding: elementwise(binding, 5 + binding.parameter_count),
    _group_form,
    roles=(_WEIGHT, _BIAS),
    settings=(_EPS, Setting("groups", int, default=1, low=1, high=64)),
    positions=Positions.GLOBAL,
    can_be_causal=False,
    kinds=WITH_POSITIONS,
    fits=_group_fits,
)

# position_norm


def _position_result(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    need_positions(inputs)
    return inputs[0]


def _position(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    dims: list[int],
    eps: float,
    shape: tuple[int, ...],
) -> Tensor:
    x = (x - torch.mean(x, dims, keepdim=True)) * torch.rsqrt(torch.var(x, dims, correction=0, keepdim=True) + eps)
    if weight is not None:
        x = x * (weight.view(shape) if shape else weight)
    if bias is not None:
        x = x + (bias.view(shape) if shape else bias)
    return x


def _position_form(binding: Binding) -> Form:
    dims, eps, kind = position_axes(binding.kind), _eps(binding), binding.kind
    weight = f" * {viewed('{1}', kind)}" if binding.parameter_count else ""
    bias = f" + {viewed('{2}', kind)}" if binding.parameter_count == 2 else ""
    source = (
        f"({{0}} - torch.mean({{0}}, {dims}, keepdim=True)) * torch.rsqrt(\n"
        f"    torch.var({{0}}, {dims}, correction=0, keepdim=True) + {eps!r}\n"
        f"){weight}{bias}"
    )
    return Form(functools.partial(_position, dims=dims, eps=eps, shape=channel_shape(kind)), source)


POSITION_NORM = Operator(
    "position_norm",
    "w[c] (x[c] - mean[c]) / sqrt(var[c] + eps) + b[c], mean and var over positions",
    1,
    _position_result,
    lambda binding: elementwise(binding, 5 + binding.parameter_count),
    _position_form,
    roles=(_WEIGHT, _BIAS),
    settings=(_EPS,),
    positions=Positions.GLOBAL,
    can_be_causal=False,
    kinds=WITH_POSITIONS,
)

ROWS = (CHANNEL_NORM, RMS_NORM, GROUP_NORM, POSITION_NORM)
