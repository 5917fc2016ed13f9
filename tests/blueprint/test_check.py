"""What is refused, by name, with the value seen and the rule."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from torch import nn

from esper.blueprint.check import check
from esper.blueprint.ir import CHANNELS, INPUT, Dimension, Graph, Initialiser, Node, Parameter, constant, of_channels
from esper.errors import InvalidBlueprint

from .strategies import graphs

HALF = of_channels(divide=2)
OUT = ("out", CHANNELS)


def weight(name="w", shape=(CHANNELS, CHANNELS)):
    return Parameter(name, shape, Initialiser.ONES)


def linear(**changes):
    return replace(Node("a", "linear", (INPUT,), ("w",), (OUT,)), **changes)


def graph(*nodes, parameters=(), output=None):
    return Graph(tuple(nodes), tuple(parameters), output or nodes[-1].name)


REFUSED = {
    "version": (replace(graph(Node("a", "relu")), version=2), "version is 2; this operator set is version 1"),
    "operator": (graph(Node("a", "fft")), "node 'a': operator 'fft' is unknown; known: add, attention"),
    "dropout": (
        graph(Node("a", "dropout")),
        "node 'a': operator 'dropout' is unknown; a graft is a function of its parameters and its input alone, "
        "the same in every form of it, and a random mask is not",
    ),
    "batch norm": (graph(Node("a", "batch_norm")), "operator 'batch_norm' is unknown; .*; use channel_norm, rms_norm"),
    "arity": (graph(Node("a", "add", (INPUT,))), "node 'a': add takes 2 inputs, got 1"),
    "unknown input": (graph(Node("a", "relu", ("b",))), "node 'a': input 'b' is no node of the graph"),
    "no parameter": (graph(linear(parameters=())), "node 'a': linear takes 1 to 2 parameters, got 0"),
    "too many parameters": (
        graph(linear(parameters=("w", "w", "w")), parameters=[weight()]),
        "node 'a': linear takes 1 to 2 parameters, got 3",
    ),
    "parameter where none belongs": (
        graph(Node("a", "relu", (INPUT,), ("w",)), parameters=[weight()]),
        "node 'a': relu takes 0 parameters, got 1",
    ),
    "undeclared": (graph(linear()), "node 'a': parameter 'w' is not declared"),
    "unused parameter": (
        graph(Node("a", "relu"), parameters=[weight("lone")]),
        "parameter 'lone' is not used by any node",
    ),
    "unused node": (
        graph(Node("b", "tanh"), Node("a", "relu")),
        "node 'b' is not used: output 'a' does not depend on it",
    ),
    "cycle": (
        graph(Node("a", "relu", ("b",)), Node("b", "tanh", ("a",))),
        r"node '[ab]' depends on itself: [ab] <- [ab] <- [ab]",
    ),
    "self": (graph(Node("a", "relu", ("a",))), "node 'a' depends on itself: a <- a"),
    "output": (graph(Node("a", "relu"), output="z"), "output 'z' is no node of the graph"),
    "output is the input": (graph(Node("a", "relu"), output=INPUT), "output 'input' is no node of the graph"),
    "node twice": (graph(Node("a", "relu"), Node("a", "tanh")), "node 'a': the name is used twice"),
    "input as a name": (graph(Node(INPUT, "relu")), "node 'input': the name is the graft's input's"),
    "bad name": (graph(Node("A b", "relu")), "node 'A b': a name must match"),
    "long name": (graph(Node("a" * 65, "relu")), "a name must match"),
    "no nodes": (Graph((), (), "a"), "the graph has 0 nodes; it must have 1 to 1024"),
    "many nodes": (
        graph(*(Node(f"n{i}", "relu", (f"n{i - 1}" if i else INPUT,)) for i in range(1025))),
        "the graph has 1025 nodes; it must have 1 to 1024",
    ),
    "missing attribute": (
        graph(linear(attributes=()), parameters=[weight()]),
        "node 'a': linear needs attribute 'out'",
    ),
    "unknown attribute": (
        graph(linear(attributes=(OUT, ("stride", 2))), parameters=[weight()]),
        "node 'a': attribute 'stride' is unknown to linear; it has out",
    ),
    "attribute where none belongs": (
        graph(Node("a", "relu", attributes=(("slope", 0.1),))),
        "attribute 'slope' is unknown to relu; it has none",
    ),
    "attribute twice": (
        graph(linear(attributes=(OUT, OUT)), parameters=[weight()]),
        "node 'a': an attribute is given twice",
    ),
    "attribute type": (
        graph(Node("a", "channel_norm", attributes=(("eps", 1),))),
        "attribute 'eps' is 1; it must be a real number, 1e-12 to 1",
    ),
    "not a number": (graph(Node("a", "channel_norm", attributes=(("eps", math.nan),))), "attribute 'eps' is nan"),
    "truth is no number": (
        graph(Node("a", "attention", (INPUT,) * 3, (), (("heads", True),))),
        "attribute 'heads' is True; it must be a whole number, 1 to 64",
    ),
    "word": (
        graph(Node("a", "conv", (INPUT,), ("w",), (OUT, ("kernel", 3), ("groups", "3"))), parameters=[weight()]),
        "attribute 'groups' is '3'; it must be one of dense, depthwise, 2, 4, 8, 16",
    ),
    "even kernel": (
        graph(Node("a", "conv", (INPUT,), ("w",), (OUT, ("kernel", 4))), parameters=[weight()]),
        "attribute 'kernel' is 4; it must be an odd whole number, 1 to 9",
    ),
    "wide kernel": (
        graph(Node("a", "conv", (INPUT,), ("w",), (OUT, ("kernel", 11))), parameters=[weight()]),
        "attribute 'kernel' is 11",
    ),
    "parameter shape": (
        graph(linear(), parameters=[weight(shape=(CHANNELS, HALF))]),
        r"node 'a': weight 'w' is \[c, c/2\]; linear needs \[c, c\]",
    ),
    "parameter rank": (
        graph(linear(), parameters=[weight(shape=(CHANNELS,))]),
        r"node 'a': weight 'w' is \[c\]; linear needs \[c, c\]",
    ),
    "no dimensions": (graph(linear(), parameters=[weight(shape=())]), "parameter 'w': 0 dimensions"),
    "output channels": (
        graph(linear(attributes=(("out", HALF),)), parameters=[weight(shape=(HALF, CHANNELS))]),
        "output 'a' has c/2 channels; it must have the input's, c",
    ),
    "pooled output": (graph(Node("a", "pool_mean")), "output 'a' is pooled to one position"),
    "pooled twice": (
        graph(Node("a", "pool_mean"), Node("b", "pool_mean", ("a",)), Node("c", "add", ("b", INPUT))),
        "node 'b': pool_mean: its input is pooled",
    ),
    "channels of a sum": (
        graph(
            linear(attributes=(("out", HALF),)),
            Node("b", "add", ("a", INPUT)),
            parameters=[weight(shape=(HALF, CHANNELS))],
        ),
        "node 'b': add: channels c/2 and c differ; they must be equal, or one of them 1",
    ),
    "query and key": (
        graph(
            linear(attributes=(("out", HALF),)),
            Node("b", "attention", ("a", INPUT, INPUT)),
            parameters=[weight(shape=(HALF, CHANNELS))],
        ),
        "node 'b': attention: query has c/2 channels and key c",
    ),
    "depthwise": (
        graph(
            Node("a", "conv", (INPUT,), ("w",), (("out", HALF), ("kernel", 3), ("groups", "depthwise"))),
            parameters=[weight(shape=(HALF, constant(1), constant(3)))],
        ),
        "node 'a': conv: depthwise with out c/2; it must equal the input's c",
    ),
    "parts of a constant": (
        graph(
            linear(attributes=(("out", constant(3)),)),
            Node("b", "split", ("a",), (), (("part", 0), ("parts", 2))),
            parameters=[weight(shape=(constant(3), CHANNELS))],
        ),
        "node 'b': split: 3 channels have no 2 equal parts",
    ),
    "part that is none": (
        graph(Node("a", "split", attributes=(("part", 2), ("parts", 2)))),
        "node 'a': split: part 2 of 2; parts are counted from 0",
    ),
    "a pooled and a full part": (
        graph(Node("a", "pool_mean"), Node("b", "concat", ("a", INPUT))),
        "node 'b': concat: one input is pooled and the other is not; give the pooled one to all with broadcast",
    ),
    "a sum that is no dimension": (
        graph(
            linear(attributes=(("out", constant(3)),)),
            Node("b", "concat", ("a", INPUT)),
            parameters=[weight(shape=(constant(3), CHANNELS))],
        ),
        "node 'b': concat: 3 and c channels have no sum that is one size of the channels",
    ),
    "broadcast of what is full": (
        graph(Node("a", "broadcast", (INPUT, INPUT))),
        "node 'a': broadcast: its first input has all positions already; it needs one that is pooled",
    ),
    "a shift by nothing": (graph(Node("a", "shift", attributes=(("by", 0),))), "shift: by is 0, which moves nothing"),
    "halves of an odd constant": (
        graph(
            linear(attributes=(("out", constant(3)),)),
            Node("b", "glu", ("a",)),
            parameters=[weight(shape=(constant(3), CHANNELS))],
        ),
        "node 'b': glu: 3 channels have no 2 equal parts",
    ),
    "name of the module's": (
        graph(linear(parameters=("half",)), parameters=[weight("half")]),
        "parameter 'half': the name belongs to torch.nn.Module or to Python",
    ),
    "keyword": (
        graph(linear(parameters=("lambda",)), parameters=[weight("lambda")]),
        "parameter 'lambda': the name belongs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_ill_formed_graph_is_refused_by_name(case):
    wrong, reason = REFUSED[case]
    with pytest.raises(InvalidBlueprint, match=reason) as caught:
        check(wrong)
    assert list(caught.value.fields.values()) == [str(caught.value)]


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"multiply": 4097}, "dimension multiply is 4097; it must be a whole number, 0 to 4096"),
        ({"divide": -1}, "dimension divide is -1"),
        ({"minimum": 1 << 20 | 1}, "dimension minimum is 1048577"),
        ({"minimum": 1.5}, "dimension minimum is 1.5"),
    ],
)
def test_a_dimension_out_of_bounds_is_refused(numbers, reason):
    with pytest.raises(InvalidBlueprint, match=reason):
        Dimension(True, **numbers)


@pytest.mark.parametrize(
    ("size", "channels", "want"),
    [
        (of_channels(divide=4), 3, 1),
        (of_channels(divide=4, minimum=4), 100, 25),
        (of_channels(3, 4), 7, 5),
        (constant(5), 100, 5),
    ],
)
def test_a_dimension_rounds_down_and_keeps_its_minimum(size, channels, want):
    assert size.resolve(channels) == want


@given(graphs())
def test_generated_graphs_are_well_formed_and_no_parameter_name_hides_a_module_attribute(graph):
    checked = check(graph)
    assert len(checked.order) == len(graph.nodes)
    assert not any(hasattr(nn.Module(), p.name) for p in graph.parameters)
