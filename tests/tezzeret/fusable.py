"""Graphs with every rule of the generator, every way of reading an input, and a step that no region can have."""

import torch
from hypothesis import strategies as st

from esper.artifact.regions import last_region
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, ONE, Graph, Initialiser, Node, Parameter
from esper.blueprint.plan import plan
from esper.tezzeret.regions import find_regions

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
GRAPHS = {"chain": CHAIN, "broadcast": BROADCAST, "around": AROUND}
INTERFACES = (
    Interface(Kind.TOKENS, 7),
    Interface(Kind.TOKENS, 16, torch.bfloat16),
    Interface(Kind.MAP2D, 5),
    Interface(Kind.MAP1D, 8, torch.float16),
    Interface(Kind.VECTOR, 9),
)
CASES = [(name, i) for name in GRAPHS for i in INTERFACES if name != "broadcast" or i.kind.position_dims]
# where one region makes the last value
JOINED_CASES = [(name, i) for name, i in CASES if i in INTERFACES[:3] or name == "chain"]
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
