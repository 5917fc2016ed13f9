"""Attention: every position a mean of all that it may see, weighted by how well they answer it."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.rules import whole
from esper.blueprint.signature import (
    WITH_POSITIONS,
    Attributes,
    Binding,
    Cost,
    Count,
    Form,
    Operator,
    Positions,
    Setting,
    Value,
    need_positions,
)
from esper.errors import InvalidBlueprint


def _result(inputs: tuple[Value, ...], attributes: Attributes) -> Value:
    need_positions(inputs)
    query, key, value = inputs
    sharing = whole(attributes, "sharing")
    if query.channels != key.channels.times(sharing):
        wanted = f"{sharing} times as many" if sharing > 1 else "equal"
        raise InvalidBlueprint(f"query has {query.channels} channels and key {key.channels}; they must be {wanted}")
    return Value(value.channels.times(sharing))


def _mask(x: Tensor, count: int, *, heads: int, causal: bool, window: int, alibi: bool) -> Tensor | None:
    """[P, P] of booleans, or [H, P, P] of what is added to the scores; None where every position sees all it may."""
    before, after = window - 1, 0 if causal else window - 1
    if not alibi:
        return x.new_ones([count, count]).triu(-before).tril(after) > 0 if window else None
    distance = torch.arange(count, device=x.device).unsqueeze(1) - torch.arange(count, device=x.device)
    slopes = torch.arange(1, heads + 1, device=x.device).mul(-8 / heads).exp2().view(heads, 1, 1)
    mask = (slopes * -distance.abs()).to(x.dtype)
    if window:
        return mask + x.new_ones([count, count]).triu(-before).tril(after).log()
    return mask + x.new_ones([count, count]).tril().log() if causal else mask


def _attend_tokens(
    q: Tensor, k: Tensor, v: Tensor, *, heads: int, sharing: int, causal: bool, window: int, alibi: bool
) -> Tensor:
    mask = _mask(q, q.size(1), heads=heads, causal=causal, window=window, alibi=alibi)
    per_key = heads // sharing
    q, k, v = [torch.unflatten(x, -1, [n, -1]).transpose(1, 2) for x, n in ((q, heads), (k, per_key), (v, per_key))]
    mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and mask is None, enable_gqa=sharing > 1)
    return mixed.transpose(1, 2).flatten(2)


def _attend_map(
    q: Tensor, k: Tensor, v: Tensor, *, heads: int, sharing: int, causal: bool, window: int, alibi: bool
) -> Tensor:
    mask = _mask(q, q.size(2), heads=heads, causal=causal, window=window, alibi=alibi)
    per_key, places = heads // sharing, q.shape[2:]
    q, k, v = [
        torch.unflatten(x.flatten(2), 1, [n, -1]).transpose(-2, -1) for x, n in ((q, heads), (k, per_key), (v, per_key))
    ]
    mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and mask is None, enable_gqa=sharing > 1)
    return torch.unflatten(mixed.transpose(-2, -1).flatten(1, 2), 2, places)


_TOKENS_SOURCE = "{{{i}}}.unflatten(-1, [{heads}, -1]).transpose(1, 2)"
_MAP_SOURCE = "{{{i}}}.flatten(2).unflatten(1, [{heads}, -1]).transpose(-2, -1)"


def _form(binding: Binding) -> Form:
    heads, sharing, window = (binding.integer(name) for name in ("heads", "sharing", "window"))
    alibi, causal, maps = binding.attributes["bias"] == "alibi", binding.causal, binding.kind.channels_first
    call = functools.partial(
        _attend_map if maps else _attend_tokens,
        heads=heads,
        sharing=sharing,
        causal=causal,
        window=window,
        alibi=alibi,
    )
    before = _mask_source(binding, heads, window, alibi)
    template, counts = _MAP_SOURCE if maps else _TOKENS_SOURCE, (heads, heads // sharing, heads // sharing)
    rows = "".join(f"    {template.format(i=i, heads=count)},\n" for i, count in enumerate(counts))
    rows += "    attn_mask={mask},\n" if before else f"    is_causal={causal},\n"
    rows += "    enable_gqa=True,\n" if sharing > 1 else ""
    places = "[" + ", ".join(f"{{0}}.size({2 + i})" for i in range(binding.kind.position_dims)) + "]"
    back = ".transpose(1, 2).flatten(2)"
    if maps:
        # the value's shape is the result's where each of its heads answers one query
        back = ".transpose(-2, -1)" + (
            ".reshape({2}.shape)" if sharing == 1 else f".flatten(1, 2).unflatten(2, {places})"
        )
    return Form(call, f"F.scaled_dot_product_attention(\n{rows}){back}", before)


def _mask_source(binding: Binding, heads: int, window: int, alibi: bool) -> tuple[tuple[str, str], ...]:
    count = f"{{0}}.size({2 if binding.kind.channels_first else 1})"
    ones = f"{{0}}.new_ones([{count}, {count}])"
    seen = f"{ones}.triu({1 - window}).tril({0 if binding.causal else window - 1})"
    if not alibi:
        return (("mask", f"{seen} > 0"),) if window else ()
    place = f"torch.arange({count}, device={{0}}.device)"
    hidden = f" + {seen}.log()" if window else f" + {ones}.tril().log()" if binding.causal else ""
    slopes = f"torch.arange(1, {heads + 1}, device={{0}}.device).mul({-8 / heads!r}).exp2().view({heads}, 1, 1)"
    return (
        ("distance", f"{place}.unsqueeze(1) - {place}"),
        ("slopes", slopes),
        ("mask", f"({{slopes}} * -{{distance}}.abs()).to({{0}}.dtype){hidden}"),
    )


def _cost(binding: Binding) -> Cost:
    heads, sharing = binding.integer("heads"), binding.integer("sharing")
    query, value = binding.inputs[0][0], binding.inputs[2][0] * sharing
    # the whole P x P score matrix, masked or not; softmax: scale, maximum, subtract, exponential, divide
    each = 6 if binding.attributes["bias"] == "alibi" else 5
    return Cost(Count(per_pair=2 * (query + value)), Count(per_pair=each * heads))


def _fits(binding: Binding) -> str:
    heads, sharing = binding.integer("heads"), binding.integer("sharing")
    (query, _), (key, _), (value, _) = binding.inputs
    if heads % sharing:
        return f"{sharing} queries to a key do not divide {heads} heads"
    for name, count, channels in (
        ("query", heads, query),
        ("key", heads // sharing, key),
        ("value", heads // sharing, value),
    ):
        if channels % count:
            return f"{count} heads do not divide the {name}'s {channels} channels"
    if query != sharing * key:
        return f"the query's {query} channels are not {sharing} times the key's {key}"
    if binding.kind is Kind.MAP2D and (binding.integer("window") or binding.attributes["bias"] != "none"):
        return "window and bias need positions in one order; map2d has two"
    return ""


ATTENTION = Operator(
    "attention",
    "softmax(q k^T / sqrt(channels of a head)) v over positions, per head",
    3,
    _result,
    _cost,
    _form,
    settings=(
        Setting("heads", int, default=1, low=1, high=64),
        Setting("sharing", int, default=1, low=1, high=64, implied=True),
        Setting("window", int, default=0, low=0, high=4096, implied=True),
        Setting("bias", str, default="none", words=("none", "alibi"), implied=True),
    ),
    positions=Positions.GLOBAL,
    kinds=WITH_POSITIONS,
    fits=_fits,
)

ROWS = (ATTENTION,)
