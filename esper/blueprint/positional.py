"""Operators over all positions at once: pool_mean and attention."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

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
    Setting,
    Value,
    need_positions,
)
from esper.errors import InvalidBlueprint

# pool_mean


def _pool_result(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    need_positions(inputs)
    return Value(inputs[0].channels, Extent.POOLED)


def _pool(x: Tensor, *, dims: list[int]) -> Tensor:
    return torch.mean(x, dims, keepdim=True)


def _pool_form(binding: Binding) -> Form:
    first = 2 if binding.kind.channels_first else 1
    dims = [first + i for i in range(binding.kind.position_dims)]
    return Form(functools.partial(_pool, dims=dims), f"torch.mean({{0}}, {dims}, keepdim=True)")


POOL_MEAN = Operator(
    "pool_mean",
    "mean over positions, kept as one position",
    1,
    _pool_result,
    lambda binding: Cost(elementwise=Count(per_position=binding.channels)),
    _pool_form,
    positions=Positions.GLOBAL,
    can_be_causal=False,
    kinds=WITH_POSITIONS,
)

# attention


def _attention_result(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    need_positions(inputs)
    query, key, value = inputs
    if query.channels != key.channels:
        raise InvalidBlueprint(f"query has {query.channels} channels and key {key.channels}; they must be equal")
    return Value(value.channels)


def _attend_tokens(q: Tensor, k: Tensor, v: Tensor, *, heads: int, causal: bool) -> Tensor:
    q, k, v = [torch.unflatten(x, -1, [heads, -1]).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def _attend_map(q: Tensor, k: Tensor, v: Tensor, *, heads: int, causal: bool) -> Tensor:
    q, k, u = [torch.unflatten(x.flatten(2), 1, [heads, -1]).transpose(-2, -1) for x in (q, k, v)]
    return F.scaled_dot_product_attention(q, k, u, is_causal=causal).transpose(-2, -1).reshape(v.shape)


_TOKENS_SOURCE = "{{{i}}}.unflatten(-1, [{heads}, -1]).transpose(1, 2)"
_MAP_SOURCE = "{{{i}}}.flatten(2).unflatten(1, [{heads}, -1]).transpose(-2, -1)"


def _attention_form(binding: Binding) -> Form:
    heads, causal = binding.integer("heads"), binding.causal
    maps = binding.kind.channels_first
    template = _MAP_SOURCE if maps else _TOKENS_SOURCE
    rows = "".join(f"    {template.format(i=i, heads=heads)},\n" for i in range(3))
    back = ".transpose(-2, -1).reshape({2}.shape)" if maps else ".transpose(1, 2).flatten(2)"
    source = f"F.scaled_dot_product_attention(\n{rows}    is_causal={causal},\n){back}"
    return Form(functools.partial(_attend_map if maps else _attend_tokens, heads=heads, causal=causal), source)


def _attention_cost(binding: Binding) -> Cost:
    query, value = binding.inputs[0][0], binding.inputs[2][0]
    # the whole P x P score matrix, causal or not; softmax: scale, maximum, subtract, exponential, divide
    return Cost(Count(per_pair=2 * (query + value)), Count(per_pair=5 * binding.integer("heads")))


def _attention_fits(binding: Binding) -> str:
    heads = binding.integer("heads")
    for name, (channels, _) in zip(("query", "key", "value"), binding.inputs, strict=True):
        if channels % heads:
            return f"{heads} heads do not divide the {name}'s {channels} channels"
    return ""


ATTENTION = Operator(
    "attention",
    "softmax(q k^T / sqrt(channels of a head)) v over positions, per head",
    3,
    _attention_result,
    _attention_cost,
    _attention_form,
    settings=(Setting("heads", int, default=1, low=1, high=64),),
    positions=Positions.GLOBAL,
    kinds=WITH_POSITIONS,
    fits=_attention_fits,
)

ROWS = (POOL_MEAN, ATTENTION)
