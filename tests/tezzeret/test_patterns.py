"""Known bad structures: what is said to be dead is dead, and no library blueprint is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from esper.blueprint.initialise import initialise
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, constant, of_channels
from esper.blueprint.lower import lower
from esper.blueprint.matching import match
from esper.blueprint.operators import OPERATORS
from esper.blueprint.redundant import IDEMPOTENT
from esper.karn.templates import TEMPLATES
from esper.tezzeret import patterns
from esper.tezzeret.check import check
from esper.tezzeret.patterns import bad_patterns
from tests.blueprint.strategies import graphs
from tests.tezzeret.test_birth import graph, scale

NARROW = constant(4)


def low_rank(first: Initialiser, second: Initialiser) -> Graph:
    down, up = Parameter("down", (NARROW, CHANNELS), first), Parameter("up", (CHANNELS, NARROW), second)
    nodes = (
        Node("d", "linear", (INPUT,), ("down",), (("out", NARROW),)),
        Node("u", "linear", ("d",), ("up",), (("out", CHANNELS),)),
    )
    return Graph(nodes, (down, up), "u")


@pytest.mark.parametrize("title", TEMPLATES)
def test_no_library_blueprint_has_one(title):
    assert bad_patterns(TEMPLATES[title].graph) == ()


def test_rules_are_of_operators_there_are():
    assert patterns._RULES.keys() <= OPERATORS.keys()
    assert OPERATORS.keys() >= IDEMPOTENT


def test_one_factor_of_a_low_rank_pair_must_be_awake():
    assert bad_patterns(low_rank(Initialiser.LECUN_UNIFORM, Initialiser.ZEROS)) == ()
    (reason,) = bad_patterns(low_rank(Initialiser.ZEROS, Initialiser.ZEROS))
    assert "no parameter gets a gradient at birth" in reason and "random values" in reason


@pytest.mark.parametrize(
    ("made", "dead"),
    [
        (graph(scale("a", INPUT, "z")), False),
        (graph(scale("a", INPUT, "z"), scale("b", "a", "z")), True),
        (graph(scale("a", INPUT, "z"), scale("b", "a", "w")), False),
        (graph(scale("a", INPUT, "z"), scale("b", INPUT, "z"), Node("c", "mul", ("a", "b"))), True),
        (graph(scale("a", INPUT, "z"), Node("c", "mul", ("a", INPUT))), False),
        (graph(scale("a", INPUT, "z"), Node("c", "attention", (INPUT, INPUT, "a"))), False),
        (graph(scale("a", INPUT, "z"), scale("b", "a", "z"), Node("c", "attention", (INPUT, INPUT, "b"))), True),
    ],
)
def test_a_product_of_zeros_is_dead(made, dead):
    assert bool(bad_patterns(made)) is dead


@pytest.mark.parametrize(("down", "up", "dead"), [("w", "z", False), ("z", "w", False), ("z", "z", True)])
def test_the_factors_of_a_low_rank_operator_need_each_other(down, up, dead):
    starts = {"w": Initialiser.LECUN_UNIFORM, "z": Initialiser.ZEROS}
    factors = (
        Parameter("down", (NARROW, CHANNELS), starts[down]),
        Parameter("up", (CHANNELS, NARROW), starts[up]),
    )
    node = Node("a", "low_rank", (INPUT,), ("down", "up"), (("rank", NARROW), ("out", CHANNELS)))
    assert bool(bad_patterns(Graph((node,), factors, "a"))) is dead


@pytest.mark.parametrize(("router", "experts", "dead"), [("w", "z", False), ("z", "z", False), ("z", "w", False)])
def test_experts_learn_whatever_the_router_starts_from(router, experts, dead):
    starts = {"w": Initialiser.LECUN_UNIFORM, "z": Initialiser.ZEROS}
    parameters = (
        Parameter("router", (constant(2), CHANNELS), starts[router]),
        Parameter("experts", (of_channels(2), CHANNELS), starts[experts]),
    )
    settings = (("experts", 2), ("out", CHANNELS))
    node = Node("a", "mixture", (INPUT,), ("router", "experts"), settings)
    assert bool(bad_patterns(Graph((node,), parameters, "a"))) is dead


def test_what_is_done_twice_changes_nothing():
    twice = graph(Node("a", "relu", (INPUT,)), Node("b", "relu", ("a",)), scale("c", "b", "z"))
    (reason,) = bad_patterns(twice)
    assert reason == "node 'b' repeats the relu it takes its input from; leave one out"
    assert bad_patterns(graph(Node("a", "relu", (INPUT,)), Node("b", "tanh", ("a",)), scale("c", "b", "z"))) == ()


def test_the_static_check_gives_every_pattern_as_a_reason():
    fine, reasons = check(low_rank(Initialiser.ZEROS, Initialiser.ZEROS), Interface(Kind.VECTOR, 8))
    assert not fine
    assert [reason for reason in reasons if "no parameter gets a gradient" in reason]


@settings(max_examples=150)
@given(graph=graphs(), data=st.data())
def test_what_is_said_to_be_dead_has_no_gradient(graph, data):
    """Random graphs of which most parameters, or all, start from zeros."""
    starts = data.draw(st.sampled_from([(Initialiser.ZEROS,), (Initialiser.ZEROS,) * 3 + (Initialiser.ONES,)]))
    drawn = [replace(p, initialiser=data.draw(st.sampled_from(starts))) for p in graph.parameters]
    graph = replace(graph, parameters=tuple(drawn))
    said = any("gradient" in reason for reason in bad_patterns(graph))
    event(f"said to be dead: {said}")
    if not said:
        return
    for interface in (Interface(Kind.TOKENS, 12), Interface(Kind.MAP2D, 12)):
        if match(graph, interface)[0]:
            module = lower(graph, interface)
            initialise(module, torch.Generator().manual_seed(0))
            h = interface.example(2, *[3] * interface.kind.position_dims)
            loss = (module(h) * torch.cos(torch.arange(h.numel()).reshape(h.shape))).sum()
            for gradient in torch.autograd.grad(loss, module.ordered_parameters(), materialize_grads=True):
                assert not gradient.any()
