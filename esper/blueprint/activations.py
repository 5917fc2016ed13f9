"""Operators on each value by itself, or over the channels of one position: activations, softmax and gates."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.blueprint.rules import channel_axis, channel_shape, elementwise, per_channel, same, viewed
from esper.blueprint.signature import Attributes, Binding, Form, Operator, Role, Setting, Value


def _activation(name: str, formula: str, call: Callable[..., Tensor], source: str, more: str = "") -> Operator:
    """`more`: further arguments of the call, as source."""
    return Operator(name, formula, 1, same, elementwise, lambda _binding: Form(call, f"{source}({{0}}{more})"))


RELU = _activation("relu", "max(x, 0)", torch.relu, "torch.relu")
RELU6 = _activation("relu6", "min(max(x, 0), 6)", F.relu6, "F.relu6")
GELU = _activation("gelu", "x Phi(x), exact (erf)", F.gelu, "F.gelu")
GELU_TANH = _activation(
    "gelu_tanh",
    "x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2",
    functools.partial(F.gelu, approximate="tanh"),
    "F.gelu",
    ', approximate="tanh"',
)
SILU = _activation("silu", "x sigmoid(x)", F.silu, "F.silu")
HARDSWISH = _activation("hardswish", "x relu6(x + 3) / 6", F.hardswish, "F.hardswish")
MISH = _activation("mish", "x tanh(log(1 + exp(x)))", F.mish, "F.mish")
SOFTPLUS = _activation("softplus", "log(1 + exp(x))", F.softplus, "F.softplus")
TANH = _activation("tanh", "tanh(x)", torch.tanh, "torch.tanh")
SIGMOID = _activation("sigmoid", "1 / (1 + exp(-x))", torch.sigmoid, "torch.sigmoid")
SINE = _activation("sine", "sin(x)", torch.sin, "torch.sin")


def _sloped(name: str, formula: str, call: Callable[..., Tensor], keyword: str, setting: Setting) -> Operator:
    """An activation with one real setting, which the call takes under `keyword`."""

    def form(binding: Binding) -> Form:
        value = float(binding.attributes[setting.name])
        return Form(functools.partial(call, **{keyword: value}), f"F.{name}({{0}}, {value!r})")

    return Operator(name, formula, 1, same, elementwise, form, settings=(setting,))


LEAKY_RELU = _sloped(
    "leaky_relu",
    "x where x > 0, else slope x",
    F.leaky_relu,
    "negative_slope",
    Setting("slope", float, default=0.01, low=0.0, high=1.0),
)
ELU = _sloped(
    "elu",
    "x where x > 0, else alpha (exp(x) - 1)",
    F.elu,
    "alpha",
    Setting("alpha", float, default=1.0, low=0.01, high=10.0),
)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slope)


def _prelu_map(x: Tensor, slope: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return torch.where(x > 0, x, x * slope.view(shape))


def _prelu_form(binding: Binding) -> Form:
    shape = channel_shape(binding.kind)
    call = functools.partial(_prelu_map, shape=shape) if shape else _prelu
    return Form(call, f"torch.where({{0}} > 0, {{0}}, {{0}} * {viewed('{1}', binding.kind)})")


PRELU = Operator(
    "prelu",
    "x[c] where x[c] > 0, else slope[c] x[c]",
    1,
    same,
    elementwise,
    _prelu_form,
    roles=(Role("slope", per_channel),),
)

# softmax


def _softmax_form(binding: Binding) -> Form:
    axis = channel_axis(binding.kind)
    return Form(functools.partial(torch.softmax, dim=axis), f"torch.softmax({{0}}, {axis})")


def _softmax_fits(binding: Binding) -> str:
    return "" if binding.channels >= 2 else "over 1 channel it is 1 for every input; it needs at least 2"


SOFTMAX = Operator(
    "softmax",
    "exp(x[c]) / sum_i exp(x[i]) over the channels of a position",
    1,
    same,
    # maximum, subtract, exponential, sum, divide
    lambda binding: elementwise(binding, 5),
    _softmax_form,
    fits=_softmax_fits,
)

# glu

_GATES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sigmoid": (torch.sigmoid, "torch.sigmoid"),
    "silu": (F.silu, "F.silu"),
    "gelu": (F.gelu, "F.gelu"),
    "relu": (torch.relu, "torch.relu"),
    "tanh": (torch.tanh, "torch.tanh"),
}


def _glu_result(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    return Value(inputs[0].channels.part(2), inputs[0].extent)


def _glu(x: Tensor, *, axis: int, half: int, gate: Callable[[Tensor], Tensor]) -> Tensor:
    return x.narrow(axis, 0, half) * gate(x.narrow(axis, half, half))


def _glu_form(binding: Binding) -> Form:
    gate, name = _GATES[str(binding.attributes["gate"])]
    axis, half = channel_axis(binding.kind), binding.channels
    source = f"{{0}}.narrow({axis}, 0, {half}) * {name}({{0}}.narrow({axis}, {half}, {half}))"
    return Form(functools.partial(_glu, axis=axis, half=half, gate=gate), source)


def _glu_fits(binding: Binding) -> str:
    channels = binding.inputs[0][0]
    return "" if 2 * binding.channels == channels else f"{channels} channels are no two equal halves"


GLU = Operator(
    "glu",
    "a gate(b), a and b the first and the second half of the channels",
    1,
    _glu_result,
    lambda binding: elementwise(binding, 2),
    _glu_form,
    settings=(Setting("gate", str, default="sigmoid", words=tuple(_GATES)),),
    fits=_glu_fits,
)

ROWS = (
    *(RELU, RELU6, GELU, GELU_TANH, SILU, HARDSWISH, MISH, SOFTPLUS, TANH, SIGMOID, SINE),
    *(LEAKY_RELU, ELU, PRELU, SOFTMAX, GLU),
)
