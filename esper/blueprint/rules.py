"""Rules that several families of operators share: types of results, costs, and where a kind has its dimensions."""

from esper.blueprint.interface import Kind
from esper.blueprint.ir import Dimension
from esper.blueprint.signature import Attributes, Binding, Cost, Count, Value, csv


def same(inputs: tuple[Value, ...], _attributes: Attributes) -> Value:
    """The first input's type."""
    return inputs[0]


def per_channel(inputs: tuple[Value, ...], _attributes: Attributes) -> tuple[Dimension, ...]:
    """[C] of the first input."""
    return (inputs[0].channels,)


def out(attributes: Attributes) -> Dimension:
    """The width that attribute `out` asks for."""
    size = attributes["out"]
    assert isinstance(size, Dimension)
    return size


def out_channels(_inputs: tuple[Value, ...], attributes: Attributes) -> tuple[Dimension, ...]:
    """[out]."""
    return (out(attributes),)


def whole(attributes: Attributes, name: str) -> int:
    """An attribute that is a whole number."""
    value = attributes[name]
    assert isinstance(value, int)
    return value


def elementwise(binding: Binding, each: int = 1) -> Cost:
    """`each` operations for every element of the result."""
    return Cost(elementwise=Count.over(binding.extent, each * binding.channels))


def moved(_binding: Binding) -> Cost:
    """Values are moved, nothing is computed."""
    return Cost()


def at_least_2_channels(binding: Binding) -> str:
    channels = binding.inputs[0][0]
    return "" if channels >= 2 else f"it normalises over {channels} channel; it needs at least 2"


def channel_axis(kind: Kind) -> int:
    """1 for maps, -1 otherwise."""
    return 1 if kind.channels_first else -1


def position_axes(kind: Kind) -> list[int]:
    """[1] of tokens, [2] or [2, 3] of maps, [] of a vector."""
    first = 2 if kind.channels_first else 1
    return [first + i for i in range(kind.position_dims)]


def channel_shape(kind: Kind) -> tuple[int, ...]:
    """Sizes a [C] tensor is viewed in to broadcast over a map's positions; () where it broadcasts as it is."""
    return (-1,) + (1,) * kind.position_dims if kind.channels_first else ()


def viewed(argument: str, kind: Kind) -> str:
    """Source of a [C] tensor as it broadcasts over the kind: "{1}.view(-1, 1, 1)"."""
    shape = channel_shape(kind)
    return f"{argument}.view({csv(shape)})" if shape else argument
