"""Graphs with every rule of the generator, every way of reading an input, and a step that no region can have."""

import torch
from hypothesis import strategies as st

from esper.artifact.regions import last_region
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, ONE, Dimension, Graph, Initialiser, Node, Parameter, constant
from esper.blueprint.plan import plan
from esper.tezzeret.regions import find_regions
from tests.tezzeret.fusable_bends import MORE

_DRAWN = Initialiser.LECUN_UNIFORM


def _vector(name: str) -> Parameter:
    return Parameter(name, (CHANNELS,), _DRAWN)


CHAIN = Graph(  # one region of every rule, one parameter used twice
    (
        Node("normed", "channel_norm", (INPUT,), ("w", "b")),
        Node("bent", "gelu", ("normed",)),
        Node("scaled", "scale", ("bent",), ("w",)),
        Node("sum", "add", ("scaled", INPUT)),
        Node("flat", "tanh", ("sum",)),
        Node("gate", "sigmoid", ("sum",)),
        Node("gated", "mul", ("flat", "gate")),
        Node("square", "mul", ("gated", "gated")),
        Node("swish", "silu", ("square",)),
        Node("plain", "channel_norm", ("swish",)),
        Node("out", "relu", ("plain",)),
    ),
    (_vector("w"), _vector("b")),
    "out",
)
BROADCAST = Graph(  # a row for all positions, one channel for all channels, and both at once; a region of pooled values
    (
        Node("pooled", "pool_mean", (INPUT,)),
        Node("wide", "sigmoid", ("pooled",)),
        Node("gate", "scale", ("wide",), ("w",)),
        Node("level", "linear", ("pooled",), ("one",), (("out", ONE),)),
        Node("mask", "linear", (INPUT,), ("one",), (("out", ONE),)),
        Node("gated", "mul", (INPUT, "gate")),
        Node("masked", "mul", ("gated", "mask")),
        Node("lifted", "add", ("masked", "level")),
        Node("out", "tanh", ("lifted",)),  # a norm would take the level out again
    ),
    (_vector("w"), Parameter("one", (ONE, CHANNELS), _DRAWN)),
    "out",
)
# all but the linear could be drawn together, were there no path that leaves and comes back
AROUND = Graph(
    (
        Node("first", "scale", (INPUT,), ("w",)),
        Node("second", "relu", ("first",)),
        Node("mixed", "linear", ("second",), ("m",), (("out", CHANNELS),)),
        Node("third", "add", ("second", "mixed")),
        Node("out", "silu", ("third",)),
    ),
    (_vector("w"), Parameter("m", (CHANNELS, CHANNELS), _DRAWN)),
    "out",
)


def _pair(name: str, source: str, rank: Dimension, *parameters: str) -> Node:
    return Node(name, "low_rank", (source,), parameters, (("out", CHANNELS), ("rank", rank)))


def paired(rank: int, *, bias: bool) -> Graph:
    """Norm, low-rank pair, activation, a gate and a residual: one region up to a rank of 16."""
    size = constant(rank)
    return Graph(
        (
            Node("normed", "channel_norm", (INPUT,), ("w", "b")),
            _pair("pair", "normed", size, "down", "up", *(["b"] if bias else [])),
            Node("bent", "gelu", ("pair",)),
            Node("gate", "sigmoid", ("normed",)),
            Node("gated", "mul", ("bent", "gate")),
            Node("out", "add", ("gated", INPUT)),
        ),
        (
            _vector("w"),
            _vector("b"),
            Parameter("down", (size, CHANNELS), _DRAWN),
            Parameter("up", (CHANNELS, size), _DRAWN),
        ),
        "out",
    )


# two regions with a pair each, which share a matrix
SHARED = Graph(
    (
        Node("normed", "channel_norm", (INPUT,), ("w",)),
        _pair("first", "normed", constant(2), "down", "up"),
        Node("bent", "silu", ("first",)),
        Node("sum", "add", ("bent", INPUT)),
        _pair("second", "sum", constant(2), "down", "other"),
        Node("flat", "tanh", ("second",)),
        Node("out", "add", ("flat", "sum")),
    ),
    (
        _vector("w"),
        Parameter("down", (constant(2), CHANNELS), _DRAWN),
        Parameter("up", (CHANNELS, constant(2)), _DRAWN),
        Parameter("other", (CHANNELS, constant(2)), _DRAWN),
    ),
    "out",
)
# both matrices of the pair are one; of 16 channels at most, it is in a region
SQUARE = Graph(
    (
        Node("scaled", "scale", (INPUT,), ("w",)),
        _pair("pair", "scaled", CHANNELS, "square", "square", "w"),
        Node("bent", "silu", ("pair",)),
        Node("out", "add", ("bent", INPUT)),
    ),
    (_vector("w"), Parameter("square", (CHANNELS, CHANNELS), _DRAWN)),
    "out",
)
ADAPTER = Graph(  # zero at birth, as what a forge builds must be
    (
        Node("normed", "channel_norm", (INPUT,), ("w", "b")),
        _pair("pair", "normed", constant(3), "down", "up"),
        Node("bent", "gelu", ("pair",)),
        Node("gate", "sigmoid", ("normed",)),
        Node("out", "mul", ("bent", "gate")),
    ),
    (
        _vector("w"),
        _vector("b"),
        Parameter("down", (constant(3), CHANNELS), _DRAWN),
        Parameter("up", (CHANNELS, constant(3)), Initialiser.ZEROS),
    ),
    "out",
)
PAIR = paired(3, bias=True)
PAIRS = {
    "pair": PAIR,
    "rank 1": paired(1, bias=False),
    "rank 16": paired(16, bias=False),
    "shared": SHARED,
    "square": SQUARE,
}
GRAPHS = {"chain": CHAIN, "broadcast": BROADCAST, "around": AROUND, **PAIRS}
INTERFACES = (
    Interface(Kind.TOKENS, 7),
    Interface(Kind.TOKENS, 16, torch.bfloat16),
    Interface(Kind.MAP2D, 5),
    Interface(Kind.MAP1D, 8, torch.float16),
    Interface(Kind.VECTOR, 9),
)
GRAPHS |= MORE
_POOLS = ("broadcast", "spread")
# they differ from "pair" in ranks and matrices, which no layout changes
_FEW = {"rank 1", "rank 16", "shared", "square"}
CASES = [
    (name, i)
    for name in GRAPHS
    for at, i in enumerate(INTERFACES)
    if (name not in _POOLS or i.kind.position_dims) and (name not in _FEW or at in (1, 2))
]
# where one region makes the last value; which operators it has beside that changes nothing of the blend
JOINED_CASES = [(name, i) for name, i in CASES if name == "chain" or (i in INTERFACES[:3] and name not in MORE)]
_UNARY = ("relu", "gelu", "silu", "tanh", "sigmoid", "scale", "channel_norm", "linear")


def last_is_fused(graph: Graph, interface: Interface) -> bool:
    """Whether a region makes the graph's last value."""
    concrete = plan(graph, interface)
    return last_region(find_regions(concrete)[0], concrete) is not None


@st.composite
def random_graphs(draw) -> tuple[Graph, Interface]:
    """A chain of one to six steps that also reads earlier values, with linears between, at a small interface."""
    names, nodes, used = [INPUT], list[Node](), set[str]()
    for at in range(draw(st.integers(1, 6))):
        operator = draw(st.sampled_from((*_UNARY, "add", "mul")))
        inputs = (names[-1], draw(st.sampled_from(names))) if operator in ("add", "mul") else (names[-1],)
        parameters = {"scale": ("w",), "channel_norm": draw(st.sampled_from([(), ("w", "b")])), "linear": ("m",)}
        given = parameters.get(operator, ())
        used |= set(given)
        out = (("out", CHANNELS),) if operator == "linear" else ()
        nodes.append(Node(f"n{at}", operator, inputs, given, out))
        names.append(f"n{at}")
    known = (_vector("w"), _vector("b"), Parameter("m", (CHANNELS, CHANNELS), _DRAWN))
    interface = Interface(draw(st.sampled_from(list(Kind))), draw(st.integers(3, 9)))
    return Graph(tuple(nodes), tuple(one for one in known if one.name in used), names[-1]), interface
