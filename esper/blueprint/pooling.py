"""Means and maxima over positions, kept as one or at every position, and one position's values given to all."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.rules import elementwise, moved, position_axes
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

# over all positions


def _pooled(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    need_positions(inputs)
    return Value(inputs[0].channels, Extent.POOLED)


def _over_positions(name: str, formula: str, call: Callable[..., Tensor], source: str) -> Operator:
    def form(binding: Binding) -> Form:
        dims = position_axes(binding.kind)
        return Form(functools.partial(call, dim=dims, keepdim=True), f"{source}({{0}}, {dims}, keepdim=True)")

    return Operator(
        name,
        formula,
        1,
        _pooled,
        lambda binding: Cost(elementwise=Count(per_position=binding.channels)),
        form,
        positions=Positions.GLOBAL,
        can_be_causal=False,
        kinds=WITH_POSITIONS,
    )


POOL_MEAN = _over_positions("pool_mean", "mean over positions, kept as one position", torch.mean, "torch.mean")
POOL_MAX = _over_positions("pool_max", "maximum over positions, kept as one position", torch.amax, "torch.amax")

# around each position


def _same_places(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    need_positions(inputs)
    return inputs[0]


def _near(
    x: Tensor, *, pool: Callable[..., Tensor], kernel: int, past: int, padding: int, outside: float, turn: bool
) -> Tensor:
    x = x.transpose(1, 2) if turn else x
    if past:
        x = F.pad(x, [past, 0], "constant", outside)
    x = pool(x, kernel, 1, padding)
    return x.transpose(1, 2) if turn else x


_CALLS: dict[str, Callable[..., Tensor]] = {
    "torch.max_pool1d": torch.max_pool1d,
    "torch.max_pool2d": torch.max_pool2d,
    "F.avg_pool1d": F.avg_pool1d,
    "F.avg_pool2d": F.avg_pool2d,
}


def _around(name: str, formula: str, source: str, outside: float) -> Operator:
    """`outside`: the value that positions before the first one have."""

    def form(binding: Binding) -> Form:
        kernel, kind = binding.integer("kernel"), binding.kind
        past, padding = (kernel - 1, 0) if binding.causal else (0, kernel // 2)
        turn, pool = kind is Kind.TOKENS, f"{source}{kind.position_dims}d"
        x = "{0}.transpose(1, 2)" if turn else "{0}"
        x = f'F.pad({x}, [{past}, 0], "constant", float("{outside}"))' if past else x
        back = ".transpose(1, 2)" if turn else ""
        call = functools.partial(
            _near, pool=_CALLS[pool], kernel=kernel, past=past, padding=padding, outside=outside, turn=turn
        )
        return Form(call, f"{pool}({x}, {kernel}, 1, {padding}){back}")

    return Operator(
        name,
        formula,
        1,
        _same_places,
        lambda binding: elementwise(binding, binding.integer("kernel") ** binding.kind.position_dims),
        form,
        settings=(Setting("kernel", int, low=3, high=9, odd=True),),
        positions=Positions.LOCAL,
        kinds=WITH_POSITIONS,
    )


LOCAL_MEAN = _around(
    "local_mean", "mean over k positions around (causal: up to) each, zeros outside", "F.avg_pool", 0.0
)
LOCAL_MAX = _around(
    "local_max", "maximum over k positions around (causal: up to) each", "torch.max_pool", float("-inf")
)

# broadcast


def _broadcast_result(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    one, like = inputs
    if one.extent is not Extent.POOLED:
        raise InvalidBlueprint("its first input has all positions already; it needs one that is pooled")
    need_positions((like,))
    return Value(one.channels)


def _broadcast(x: Tensor, like: Tensor, *, axes: list[int]) -> Tensor:
    return x.expand([like.size(axis) if axis in axes else -1 for axis in range(like.dim())])


def _broadcast_form(binding: Binding) -> Form:
    axes = position_axes(binding.kind)
    sizes = (f"{{1}}.size({axis})" if axis in axes else "-1" for axis in range(2 + binding.kind.position_dims))
    return Form(functools.partial(_broadcast, axes=axes), f"{{0}}.expand({', '.join(sizes)})")


BROADCAST = Operator(
    "broadcast",
    "a, pooled, at every position that b has",
    2,
    _broadcast_result,
    moved,
    _broadcast_form,
    can_be_causal=False,  # nothing can be pooled there
    kinds=WITH_POSITIONS,
)

ROWS = (POOL_MEAN, POOL_MAX, LOCAL_MEAN, LOCAL_MAX, BROADCAST)
