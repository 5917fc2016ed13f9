"""A matrix over channels, wherever an interface has them, as a call and as source."""

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.signature import Binding, Extent, csv

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _map1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shape: tuple[int, ...]) -> Tensor:
    return F.conv1d(x, weight.view(shape), bias)


def _map2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shape: tuple[int, ...]) -> Tensor:
    return F.conv2d(x, weight.view(shape), bias)


def _pooled(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shape: tuple[int, ...]) -> Tensor:
    return F.linear(x.flatten(1), weight, bias).view(shape)


def product(binding: Binding, channels: int, rows: int) -> Product:
    """The call of a [rows, channels] matrix at the interface."""
    if not binding.kind.channels_first:
        return F.linear
    ones = (1,) * binding.kind.position_dims
    if binding.extent is Extent.POOLED:  # a tenth of a 1x1 convolution's time on a CPU
        return functools.partial(_pooled, shape=(-1, rows, *ones))
    call = _map1d if binding.kind is Kind.MAP1D else _map2d
    return functools.partial(call, shape=(rows, channels, *ones))


def product_source(binding: Binding, channels: int, rows: int, arguments: tuple[str, ...]) -> str:
    """The same as source; `arguments`: input, weight and, where there is one, bias."""
    x, weight, *bias = arguments
    if not binding.kind.channels_first:
        return f"F.linear({', '.join(arguments)})"
    ones = (1,) * binding.kind.position_dims
    if binding.extent is Extent.POOLED:
        return f"F.linear({', '.join([f'{x}.flatten(1)', weight, *bias])}).view({csv((-1, rows, *ones))})"
    weight = f"{weight}.view({csv((rows, channels, *ones))})"
    return f"F.conv{len(ones)}d({', '.join([x, weight, *bias])})"
