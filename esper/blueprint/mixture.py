"""Mixture of experts: at each position the matrix that a router prefers (Fedus et al. 2022, arXiv:2101.03961).

Shapes are static: every expert is computed and all but one are multiplied by zero, so the cost is that of all.
The router learns through the share that its choice is multiplied by.
"""

import functools

import torch
from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.ir import Dimension, constant
from esper.blueprint.products import Product, product, product_source
from esper.blueprint.rules import channel_axis, channel_shape, out, out_channels, viewed, whole
from esper.blueprint.signature import Attributes, Binding, Cost, Count, Form, Operator, Role, Setting, Value, csv


def _router(inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    return (constant(whole(attributes, "experts")), inputs[0].channels)


def _experts(inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    return (out(attributes).times(whole(attributes, "experts")), inputs[0].channels)


def _mixture_result(inputs: tuple[Value, ...], attributes: Attributes) -> Value:
    _experts(inputs, attributes)  # a width that has no multiple is refused here
    return Value(out(attributes), inputs[0].extent)


def _mixture(
    x: Tensor,
    router: Tensor,
    experts: Tensor,
    bias: Tensor | None = None,
    *,
    route: Product,
    answer: Product,
    kind: Kind,
    count: int,
    rows: int,
) -> Tensor:
    axis, split = channel_axis(kind), (2 if kind.channels_first else -1)
    shape = (count, *channel_shape(kind)[1:])
    share = torch.softmax(route(x, router, None), axis)
    top = share.argmax(axis, keepdim=True) == torch.arange(count, device=x.device).view(shape)
    every = torch.unflatten(answer(x, experts, None), axis, [count, rows])
    y = (every * (share * top).unsqueeze(split)).sum(axis if kind.channels_first else -2)
    if bias is None:
        return y
    return y + (bias.view(channel_shape(kind)) if kind.channels_first else bias)


def _mixture_form(binding: Binding) -> Form:
    channels, count, rows, kind = binding.inputs[0][0], binding.integer("experts"), binding.channels, binding.kind
    axis, split, total = (1, 2, 1) if kind.channels_first else (-1, -1, -2)
    shape = csv((count, *channel_shape(kind)[1:]))
    call = functools.partial(
        _mixture,
        route=product(binding, channels, count),
        answer=product(binding, channels, count * rows),
        kind=kind,
        count=count,
        rows=rows,
    )
    share = f"torch.softmax({product_source(binding, channels, count, ('{0}', '{1}'))}, {axis})"
    top = f"{{share}}.argmax({axis}, keepdim=True) == torch.arange({count}, device={{0}}.device).view({shape})"
    every = f"{product_source(binding, channels, count * rows, ('{0}', '{2}'))}.unflatten({axis}, [{count}, {rows}])"
    bias = f" + {viewed('{3}', kind)}" if binding.parameter_count == 3 else ""
    source = f"({{every}} * ({{share}} * {{top}}).unsqueeze({split})).sum({total}){bias}"
    return Form(call, source, (("share", share), ("top", top), ("every", every)))


def _mixture_cost(binding: Binding) -> Cost:
    count, rows = binding.integer("experts"), binding.channels
    products = 2 * binding.inputs[0][0] * count * (1 + rows)
    # softmax and the choice among the scores, then each expert's share and their sum
    elementwise = 6 * count + 2 * count * rows + (rows if binding.parameter_count == 3 else 0)
    return Cost(Count.over(binding.extent, products), Count.over(binding.extent, elementwise))


def _mixture_fits(binding: Binding) -> str:
    count, rows = binding.integer("experts"), binding.parameter_sizes[1][0]
    return "" if rows == count * binding.channels else f"{rows} rows are no {count} experts of {binding.channels} each"


MIXTURE = Operator(
    "mixture",
    "s[k] sum_i w[k, o, i] x[i] + b[o], s = softmax(r x) and k its largest element, at each position (top-1)",
    1,
    _mixture_result,
    _mixture_cost,
    _mixture_form,
    fits=_mixture_fits,
    roles=(
        Role("router_weight", _router),
        Role("experts_weight", _experts),
        Role("bias", out_channels, optional=True),
    ),
    settings=(Setting("experts", int, default=4, low=2, high=16), Setting("out", Dimension)),
)

ROWS = (MIXTURE,)
