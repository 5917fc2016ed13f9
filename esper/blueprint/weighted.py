"""Matrices over the channels of each position: one, and a product of two thin ones."""

import functools

from torch import Tensor

from esper.blueprint.ir import Dimension
from esper.blueprint.products import Product, product, product_source
from esper.blueprint.rules import out, out_channels
from esper.blueprint.signature import Attributes, Binding, Cost, Count, Form, Operator, Role, Setting, Value


def _result(inputs: tuple[Value, ...], attributes: Attributes) -> Value:
    return Value(out(attributes), inputs[0].extent)


# linear


def _linear_weight(inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    return (out(attributes), inputs[0].channels)


def _linear_form(binding: Binding) -> Form:
    channels, rows = binding.inputs[0][0], binding.channels
    arguments = ("{0}", "{1}", "{2}")[: 1 + binding.parameter_count]
    return Form(product(binding, channels, rows), product_source(binding, channels, rows, arguments))


def _linear_cost(binding: Binding) -> Cost:
    bias = binding.channels if binding.parameter_count == 2 else 0
    products = 2 * binding.channels * binding.inputs[0][0]
    return Cost(Count.over(binding.extent, products), Count.over(binding.extent, bias))


LINEAR = Operator(
    "linear",
    "sum_i w[o, i] x[i] + b[o] at each position",
    1,
    _result,
    _linear_cost,
    _linear_form,
    roles=(Role("weight", _linear_weight), Role("bias", out_channels, optional=True)),
    settings=(Setting("out", Dimension),),
)

# low_rank


def _rank(attributes: Attributes) -> Dimension:
    rank = attributes["rank"]
    assert isinstance(rank, Dimension)
    return rank


def _down(inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    return (_rank(attributes), inputs[0].channels)


def _up(_inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    return (out(attributes), _rank(attributes))


def _low_rank(
    x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None = None, *, first: Product, second: Product
) -> Tensor:
    return second(first(x, down, None), up, bias)


def _low_rank_form(binding: Binding) -> Form:
    channels, rank, rows = binding.inputs[0][0], binding.integer("rank"), binding.channels
    first, second = product(binding, channels, rank), product(binding, rank, rows)
    inner = product_source(binding, channels, rank, ("{0}", "{1}"))
    arguments = ("{inner}", "{2}", "{3}")[: binding.parameter_count]
    source = product_source(binding, rank, rows, arguments)
    return Form(functools.partial(_low_rank, first=first, second=second), source, (("inner", inner),))


def _low_rank_cost(binding: Binding) -> Cost:
    bias = binding.channels if binding.parameter_count == 3 else 0
    products = 2 * binding.integer("rank") * (binding.inputs[0][0] + binding.channels)
    return Cost(Count.over(binding.extent, products), Count.over(binding.extent, bias))


LOW_RANK = Operator(
    "low_rank",
    "sum_r u[o, r] sum_i d[r, i] x[i] + b[o] at each position",
    1,
    _result,
    _low_rank_cost,
    _low_rank_form,
    roles=(Role("down_weight", _down), Role("up_weight", _up), Role("bias", out_channels, optional=True)),
    settings=(Setting("rank", Dimension), Setting("out", Dimension)),
)

ROWS = (LINEAR, LOW_RANK)
