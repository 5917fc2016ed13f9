"""Operators that move values and compute nothing: parts of the channels, channels exchanged, positions moved.

A graft's value has its input's positions, or one: there is none that makes positions into channels or back.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.blueprint.rules import channel_axis, moved, position_axes, same, whole
from esper.blueprint.signature import (
    WITH_POSITIONS,
    Attributes,
    Binding,
    Form,
    Operator,
    Positions,
    Setting,
    Value,
    need_positions,
)
from esper.errors import InvalidBlueprint

# split and concat


def _split_result(inputs: tuple[Value, ...], attributes: Attributes) -> Value:
    parts, part = whole(attributes, "parts"), whole(attributes, "part")
    if part >= parts:
        raise InvalidBlueprint(f"part {part} of {parts}; parts are counted from 0")
    return Value(inputs[0].channels.part(parts), inputs[0].extent)


def _split(x: Tensor, *, axis: int, start: int, length: int) -> Tensor:
    return x.narrow(axis, start, length)


def _split_form(binding: Binding) -> Form:
    axis, length = channel_axis(binding.kind), binding.channels
    start = binding.integer("part") * length
    call = functools.partial(_split, axis=axis, start=start, length=length)
    return Form(call, f"{{0}}.narrow({axis}, {start}, {length})")


def _split_fits(binding: Binding) -> str:
    channels, parts = binding.inputs[0][0], binding.integer("parts")
    return "" if parts * binding.channels == channels else f"{channels} channels have no {parts} equal parts"


SPLIT = Operator(
    "split",
    "one of equal parts of the channels, counted from 0",
    1,
    _split_result,
    moved,
    _split_form,
    settings=(Setting("part", int, low=0, high=15), Setting("parts", int, low=2, high=16)),
    fits=_split_fits,
)


def _concat_result(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    a, b = inputs
    if a.extent is not b.extent:
        raise InvalidBlueprint("one input is pooled and the other is not; give the pooled one to all with broadcast")
    return Value(a.channels.plus(b.channels), a.extent)


def _concat(a: Tensor, b: Tensor, *, axis: int) -> Tensor:
    return torch.cat([a, b], axis)


def _concat_form(binding: Binding) -> Form:
    axis = channel_axis(binding.kind)
    return Form(functools.partial(_concat, axis=axis), f"torch.cat([{{0}}, {{1}}], {axis})")


def _concat_fits(binding: Binding) -> str:
    a, b = (channels for channels, _ in binding.inputs)
    return "" if a + b == binding.channels else f"{a} and {b} channels are not the {binding.channels} of the result"


CONCAT = Operator(
    "concat",
    "the channels of a, then those of b",
    2,
    _concat_result,
    moved,
    _concat_form,
    fits=_concat_fits,
)

# channel_shuffle


def _shuffle(x: Tensor, *, groups: int, axis: int, turn: tuple[int, int]) -> Tensor:
    return torch.unflatten(x, axis, [groups, -1]).transpose(*turn).flatten(*turn)


def _shuffle_form(binding: Binding) -> Form:
    groups, axis = binding.integer("groups"), channel_axis(binding.kind)
    turn = (1, 2) if binding.kind.channels_first else (-2, -1)
    places = f"{turn[0]}, {turn[1]}"
    call = functools.partial(_shuffle, groups=groups, axis=axis, turn=turn)
    return Form(call, f"{{0}}.unflatten({axis}, [{groups}, -1]).transpose({places}).flatten({places})")


def _shuffle_fits(binding: Binding) -> str:
    groups, channels = binding.integer("groups"), binding.channels
    return f"{groups} groups do not divide {channels} channels" if channels % groups else ""


CHANNEL_SHUFFLE = Operator(
    "channel_shuffle",
    "channels in turn from each of equal groups: [groups, n] read as [n, groups]",
    1,
    same,
    moved,
    _shuffle_form,
    settings=(Setting("groups", int, low=2, high=64),),
    fits=_shuffle_fits,
)

# shift and flip


def _all_places(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    need_positions(inputs)
    return inputs[0]


def _shift_result(inputs: tuple[Value, ...], attributes: Attributes) -> Value:
    if whole(attributes, "by") == 0:
        raise InvalidBlueprint("by is 0, which moves nothing")
    return _all_places(inputs, attributes)


def _shift(x: Tensor, *, pad: list[int], dim: int, start: int) -> Tensor:
    return F.pad(x, pad).narrow(dim, start, x.size(dim))


def _shift_form(binding: Binding) -> Form:
    by, dim = binding.integer("by"), position_axes(binding.kind)[binding.integer("axis")]
    after = 1 + binding.kind.position_dims - dim  # dimensions that come after it
    pad, start = [0, 0] * after + [max(by, 0), max(-by, 0)], max(-by, 0)
    source = f"F.pad({{0}}, {pad}).narrow({dim}, {start}, {{0}}.size({dim}))"
    return Form(functools.partial(_shift, pad=pad, dim=dim, start=start), source)


def _shift_fits(binding: Binding) -> str:
    if binding.integer("axis") >= binding.kind.position_dims:
        return f"axis {binding.integer('axis')}; {binding.kind.value} has {binding.kind.position_dims}, counted from 0"
    if binding.causal and binding.integer("by") < 0:
        return f"by {binding.integer('by')} looks at later positions; a causal interface forbids it"
    return ""


SHIFT = Operator(
    "shift",
    "x at `by` positions before (by < 0: after) each, zeros outside",
    1,
    _shift_result,
    moved,
    _shift_form,
    settings=(
        Setting("axis", int, default=0, low=0, high=1),
        Setting("by", int, low=-8, high=8),
    ),
    positions=Positions.LOCAL,
    kinds=WITH_POSITIONS,
    fits=_shift_fits,
)


def _flip(x: Tensor, *, dims: list[int]) -> Tensor:
    return torch.flip(x, dims)


def _flip_form(binding: Binding) -> Form:
    dims = position_axes(binding.kind)
    return Form(functools.partial(_flip, dims=dims), f"torch.flip({{0}}, {dims})")


FLIP = Operator(
    "flip",
    "positions in reverse order",
    1,
    _all_places,
    moved,
    _flip_form,
    positions=Positions.GLOBAL,
    can_be_causal=False,
    kinds=WITH_POSITIONS,
)

ROWS = (SPLIT, CONCAT, CHANNEL_SHUFFLE, SHIFT, FLIP)
