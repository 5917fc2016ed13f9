"""Graphs with every rule of the generator, every way of reading an input, and a step that no region can have."""

import torch

from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, ONE, Graph, Initialiser, Node, Parameter
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
GRAPHS = {"chain": CHAIN, "broadcast": BROADCAST, "around": AROUND}
INTERFACES = (
    Interface(Kind.TOKENS, 7),
    Interface(Kind.TOKENS, 16, torch.bfloat16),
    Interface(Kind.MAP2D, 5),
    Interface(Kind.MAP1D, 8, torch.float16),
    Interface(Kind.VECTOR, 9),
)
GRAPHS |= MORE
_POOLS = ("broadcast", "spread")
CASES = [(name, i) for name in GRAPHS for i in INTERFACES if name not in _POOLS or i.kind.position_dims]
