"""Where a position is, as values, without a table to learn: rotation of channel pairs, and sines that are added.

Positions count from 0. Angles are computed in float32 at any element type and cast after their sine.
"""

import functools

import torch
from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.rules import elementwise
from esper.blueprint.signature import (
    Attributes,
    Binding,
    Form,
    Operator,
    Setting,
    Value,
    need_positions,
)

_ORDERED = frozenset({Kind.TOKENS, Kind.MAP1D})  # kinds whose positions have one order
_BASE = Setting("base", float, default=10000.0, low=2.0, high=1e8)


def _result(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    need_positions(inputs)
    return inputs[0]


def _angle(x: Tensor, axis: int, pairs: int, base: float) -> Tensor:
    """[P, pairs]: position times base^(-i / pairs)."""
    pace = torch.pow(base, torch.arange(pairs, device=x.device).mul(-1 / pairs))
    return torch.arange(x.size(axis), device=x.device).unsqueeze(1) * pace


def _angle_source(axis: int, pairs: int, base: float) -> tuple[tuple[str, str], ...]:
    pace = f"torch.pow({base!r}, torch.arange({pairs}, device={{0}}.device).mul({-1 / pairs!r}))"
    place = f"torch.arange({{0}}.size({axis}), device={{0}}.device).unsqueeze(1)"
    return (("pace", pace), ("angle", f"{place} * {{pace}}"))


# rotary


def _rotary(x: Tensor, *, axis: int, heads: int, pairs: int, base: float) -> Tensor:
    angle = _angle(x, axis, pairs, base).unsqueeze(1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    x = x.transpose(1, 2) if axis == 2 else x
    x = torch.unflatten(x, -1, [heads, 2, pairs])
    a, b = x.select(-2, 0), x.select(-2, 1)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -2).flatten(2)
    return turned.transpose(1, 2) if axis == 2 else turned


def _rotary_form(binding: Binding) -> Form:
    heads, base = binding.integer("heads"), float(binding.attributes["base"])
    pairs, axis = binding.channels // heads // 2, 2 if binding.kind.channels_first else 1
    turn = ".transpose(1, 2)" if axis == 2 else ""
    before = (
        *_angle_source(axis, pairs, base),
        ("cos", "{angle}.unsqueeze(1).cos().to({0}.dtype)"),
        ("sin", "{angle}.unsqueeze(1).sin().to({0}.dtype)"),
        ("split", f"{{0}}{turn}.unflatten(-1, [{heads}, 2, {pairs}])"),
        ("a", "{split}.select(-2, 0)"),
        ("b", "{split}.select(-2, 1)"),
    )
    source = f"torch.stack([{{a}} * {{cos}} - {{b}} * {{sin}}, {{a}} * {{sin}} + {{b}} * {{cos}}], -2).flatten(2){turn}"
    return Form(functools.partial(_rotary, axis=axis, heads=heads, pairs=pairs, base=base), source, before)


def _rotary_fits(binding: Binding) -> str:
    heads, channels = binding.integer("heads"), binding.channels
    return "" if channels % (2 * heads) == 0 else f"{channels} channels are no pairs in {heads} heads"


ROTARY = Operator(
    "rotary",
    "each pair (x[i], x[i + n]) of a head's 2n channels turned by position * base^(-i / n)",
    1,
    _result,
    lambda binding: elementwise(binding, 3),
    _rotary_form,
    settings=(_BASE, Setting("heads", int, default=1, low=1, high=64)),
    kinds=_ORDERED,
    fits=_rotary_fits,
)

# sinusoid


def _sinusoid(x: Tensor, *, axis: int, pairs: int, base: float) -> Tensor:
    angle = _angle(x, axis, pairs, base)
    waves = torch.cat([angle.sin(), angle.cos()], 1).to(x.dtype)
    return x + (waves.t() if axis == 2 else waves)


def _sinusoid_form(binding: Binding) -> Form:
    base, pairs, axis = (
        float(binding.attributes["base"]),
        binding.channels // 2,
        2 if binding.kind.channels_first else 1,
    )
    waves = ("waves", "torch.cat([{angle}.sin(), {angle}.cos()], 1).to({0}.dtype)")
    call = functools.partial(_sinusoid, axis=axis, pairs=pairs, base=base)
    return Form(call, "{0} + {waves}" + (".t()" if axis == 2 else ""), (*_angle_source(axis, pairs, base), waves))


def _sinusoid_fits(binding: Binding) -> str:
    return f"{binding.channels} channels are no pairs" if binding.channels % 2 else ""


SINUSOID = Operator(
    "sinusoid",
    "x + (sin of position * base^(-i / n) in the first n channels, cos in the other n)",
    1,
    _result,
    elementwise,
    _sinusoid_form,
    settings=(_BASE,),
    kinds=_ORDERED,
    fits=_sinusoid_fits,
)

ROWS = (ROTARY, SINUSOID)
