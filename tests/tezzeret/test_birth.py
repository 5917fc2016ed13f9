"""Zero at birth, decided from the graph: never said of a graph that is not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from esper.blueprint.initialise import initialise
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, constant
from esper.blueprint.lower import lower
from esper.blueprint.matching import match
from esper.blueprint.operators import OPERATORS
from esper.karn.templates import TEMPLATES
from esper.tezzeret.birth import RULES, zero_at_birth
from tests.blueprint.strategies import graphs

W = Parameter("w", (CHANNELS,), Initialiser.ONES)
Z = Parameter("z", (CHANNELS,), Initialiser.ZEROS)


def graph(*nodes: Node, parameters: tuple[Parameter, ...] = (W, Z)) -> Graph:
    used = {name for node in nodes for name in node.parameters}
    return Graph(nodes, tuple(p for p in parameters if p.name in used), nodes[-1].name)


def scale(name: str, source: str, weight: str) -> Node:
    return Node(name, "scale", (source,), (weight,))


@pytest.mark.parametrize("title", TEMPLATES)
def test_every_template_is_zero_at_birth(title):
    assert zero_at_birth(TEMPLATES[title].graph)[0]


def test_every_operator_has_a_rule():
    assert RULES.keys() == OPERATORS.keys()


@pytest.mark.parametrize(
    ("made", "zero"),
    [
        (graph(scale("a", INPUT, "z")), True),
        (graph(scale("a", INPUT, "w")), False),
        (graph(scale("a", INPUT, "z"), Node("b", "tanh", ("a",))), True),
        (graph(scale("a", INPUT, "z"), Node("b", "sigmoid", ("a",))), False),
        (graph(scale("a", INPUT, "z"), Node("b", "add", ("a", INPUT))), False),
        (graph(scale("a", INPUT, "z"), Node("b", "mul", ("a", INPUT))), True),
        (graph(scale("a", INPUT, "z"), Node("b", "channel_norm", ("a",))), True),
        (graph(scale("a", INPUT, "z"), Node("b", "channel_norm", ("a",), ("w", "z"))), True),
        (graph(scale("a", INPUT, "z"), Node("b", "channel_norm", ("a",), ("z", "w"))), False),
        (graph(Node("b", "channel_norm", (INPUT,), ("z",))), True),
        (graph(Node("b", "rms_norm", (INPUT,), ("z",))), True),
        (graph(Node("b", "bias", (INPUT,), ("z",))), False),
        (graph(scale("a", INPUT, "z"), Node("b", "bias", ("a",), ("z",))), True),
        (graph(scale("a", INPUT, "z"), Node("b", "bias", ("a",), ("w",))), False),
        (graph(scale("a", INPUT, "z"), Node("b", "prelu", ("a",), ("w",))), True),
        (graph(scale("a", INPUT, "z"), Node("b", "softplus", ("a",))), False),
        (graph(scale("a", INPUT, "z"), Node("b", "softmax", ("a",))), False),
        (graph(scale("a", INPUT, "z"), Node("b", "sinusoid", ("a",))), False),
        (graph(scale("a", INPUT, "z"), Node("b", "rotary", ("a",))), True),
        (graph(scale("a", INPUT, "z"), Node("b", "local_max", ("a",), (), (("kernel", 3),))), True),
        (graph(Node("b", "channel_norm", (INPUT,), ("w",))), False),
    ],
)
def test_operators_make_or_keep_zero_as_their_formula_says(made, zero):
    answer, reason = zero_at_birth(made)
    assert answer is zero
    assert zero or made.output in reason


MATRIX = (CHANNELS, CHANNELS)
SHAPES = {
    "low_rank": (MATRIX, MATRIX, (CHANNELS,)),
    "mixture": ((constant(2), CHANNELS), (CHANNELS.times(2), CHANNELS), (CHANNELS,)),
}


@pytest.mark.parametrize(
    ("operator", "setting", "zeros", "zero"),
    [
        ("low_rank", ("rank", CHANNELS), "down bias", True),
        ("low_rank", ("rank", CHANNELS), "up bias", True),
        ("low_rank", ("rank", CHANNELS), "up", False),
        ("low_rank", ("rank", CHANNELS), "bias", False),
        ("mixture", ("experts", 2), "up bias", True),  # the experts
        ("mixture", ("experts", 2), "down bias", False),  # the router
        ("mixture", ("experts", 2), "up", False),
    ],
)
def test_operators_of_two_matrices_are_zero_where_their_product_is(operator, setting, zeros, zero):
    parameters = tuple(
        Parameter(name, shape, Initialiser.ZEROS if name in zeros.split() else Initialiser.ONES)
        for name, shape in zip(("down", "up", "bias"), SHAPES[operator], strict=True)
    )
    node = Node("a", operator, (INPUT,), ("down", "up", "bias"), (("out", CHANNELS), setting))
    assert zero_at_birth(Graph((node,), parameters, "a"))[0] is zero


def with_tail(graph: Graph, operators: list[str]) -> Graph:
    """`graph`, scaled by zeros, and then what may keep that zero, or not."""
    out = graph.output
    nodes = [*graph.nodes, Node("tail", "scale", (out,), ("zeros",))]
    for number, operator in enumerate(operators):
        inputs = (nodes[-1].name, out) if operator in ("add", "mul") else (nodes[-1].name,)
        nodes.append(Node(f"tail{number}", operator, inputs))
    zeros = Parameter("zeros", (CHANNELS,), Initialiser.ZEROS)
    return Graph(tuple(nodes), (*graph.parameters, zeros), nodes[-1].name)


TAILS = st.lists(st.sampled_from(["relu", "tanh", "channel_norm", "sigmoid", "add", "mul"]), max_size=3)


@settings(max_examples=100)
@given(graph=graphs(tuple(OPERATORS)), tail=TAILS, data=st.data())
def test_what_is_said_to_be_zero_is_zero(graph, tail, data):
    """Random graphs of which many parameters start from zeros."""
    starts = st.sampled_from([Initialiser.ZEROS, Initialiser.ONES])
    graph = replace(graph, parameters=tuple(replace(p, initialiser=data.draw(starts)) for p in graph.parameters))
    graph = with_tail(graph, tail)
    said, _ = zero_at_birth(graph)
    event(f"said to be zero: {said}")
    if not said:
        return
    for interface in (Interface(Kind.TOKENS, 12), Interface(Kind.MAP2D, 12)):
        if match(graph, interface)[0]:
            module = lower(graph, interface)
            initialise(module, torch.Generator().manual_seed(0))
            with torch.no_grad():
                assert not module(interface.example(2, *[3] * interface.kind.position_dims)).any()
