"""What a library blueprint is, and the shorthand in which the families write theirs.

All are zero at birth: the last operator with parameters has them zero, so g(h) = 0
exactly, and gradient reaches that operator at once and everything before it from the
first update on (residual branches started at zero: Goyal et al. 2017,
arXiv:1706.02677, sec. 5.1; Zhang et al. 2019, arXiv:1901.09321).
"""

from dataclasses import dataclass

from esper.blueprint.ir import CHANNELS, INPUT, Attribute, Dimension, Graph, Initialiser, Node, of_channels
from esper.blueprint.operators import OPERATORS
from esper.karn.grammar import renew

HALF = of_channels(divide=2)
QUARTER = of_channels(divide=4)
QUARTER_OF_AT_LEAST_4 = of_channels(divide=4, minimum=4)
TWICE = of_channels(multiply=2)
FOUR = of_channels(multiply=4)


@dataclass(frozen=True, slots=True)
class Template:
    """One library blueprint. `family` groups templates for priors and bandits."""

    title: str
    family: str
    source: str
    graph: Graph


@dataclass(frozen=True, slots=True)
class Part:
    """A node with how its parameters start: the weight as said, a bias from zeros."""

    node: Node
    weight: Initialiser


def part(
    name: str,
    operator: str,
    *inputs: str,
    weight: Initialiser = Initialiser.HE_UNIFORM,
    bias: bool = True,
    **attributes: Attribute,
) -> Part:
    """`inputs` none: the graft's input."""
    roles = [role.name for role in OPERATORS[operator].roles if bias or role.name != "bias"]
    parameters = tuple(f"{name}_{role}" for role in roles)
    return Part(Node(name, operator, inputs or (INPUT,), parameters, tuple(attributes.items())), weight)


def linear(name: str, source: str = INPUT, out: Dimension = CHANNELS, bias: bool = True) -> Part:
    return part(name, "linear", source, out=out, bias=bias)


def depthwise(name: str, source: str = INPUT, width: int = 3, out: Dimension = CHANNELS) -> Part:
    return part(name, "conv", source, kernel=width, groups="depthwise", out=out)


def norm(name: str, source: str = INPUT) -> Part:
    return part(name, "channel_norm", source, weight=Initialiser.ONES)


def project(source: str, bias: bool = True) -> Part:
    """The end of most: to the input's channels, from zeros."""
    return zero("project", source, bias=bias)


def zero(name: str, source: str = INPUT, out: Dimension = CHANNELS, bias: bool = True) -> Part:
    return part(name, "linear", source, weight=Initialiser.ZEROS, out=out, bias=bias)


def graph_of(*parts: Part) -> Graph:
    """The graph whose output is the last part."""
    starts = {
        name: Initialiser.ZEROS if name.endswith("_bias") else one.weight
        for one in parts
        for name in one.node.parameters
    }
    return renew([one.node for one in parts], parts[-1].node.name, starts)
