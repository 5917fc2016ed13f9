"""Which interfaces a graph fits, and the reason where it does not."""

import pytest
from hypothesis import given

from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, of_channels
from esper.blueprint.lower import lower
from esper.blueprint.matching import match
from esper.errors import InvalidBlueprint
from esper.karn.templates import TEMPLATES

from .strategies import graphs, interfaces

WITHOUT_POSITIONS = {"mlp", "low_rank", "norm", "scale"}  # families
GATES = {"geglu_mlp", "glu_mlp", "highway", "swiglu_mlp"}
TITLES = {
    Interface(Kind.VECTOR, 8): {t for t, one in TEMPLATES.items() if one.family in WITHOUT_POSITIONS} | GATES,
    Interface(Kind.TOKENS, 8, causal=True): set(TEMPLATES) - {"squeeze_excitation"},
    Interface(Kind.MAP1D, 8, causal=True): set(TEMPLATES) - {"squeeze_excitation"},
    Interface(Kind.TOKENS, 8): set(TEMPLATES),
    Interface(Kind.MAP1D, 8): set(TEMPLATES),
    Interface(Kind.MAP2D, 8): set(TEMPLATES),
}


@pytest.mark.parametrize("interface", TITLES, ids=str)
def test_what_the_library_has_for_an_interface(interface):
    assert {title for title, t in TEMPLATES.items() if match(t.graph, interface)[0]} == TITLES[interface]


def attention(heads):
    return Graph((Node("mix", "attention", (INPUT,) * 3, (), (("heads", heads),)),), (), "mix")


def huge():
    size = of_channels(4096)
    nodes = (
        Node("a", "linear", (INPUT,), ("w",), (("out", size),)),
        Node("b", "linear", ("a",), ("v",), (("out", CHANNELS),)),
    )
    parameters = (
        Parameter("w", (size, CHANNELS), Initialiser.ONES),
        Parameter("v", (CHANNELS, size), Initialiser.ONES),
    )
    return Graph(nodes, parameters, "b")


@pytest.mark.parametrize(
    ("graph", "interface", "reason"),
    [
        (
            TEMPLATES["conv3"].graph,
            Interface(Kind.VECTOR, 8),
            "node 'near': conv needs positions; vector[8] float32 has none",
        ),
        (
            TEMPLATES["squeeze_excitation"].graph,
            Interface(Kind.TOKENS, 8, causal=True),
            "node 'squeeze': pool_mean looks at later positions; tokens[8] float32 causal forbids it",
        ),
        (
            attention(3),
            Interface(Kind.TOKENS, 8),
            "node 'mix': attention: 3 heads do not divide the query's 8 channels",
        ),
        (
            TEMPLATES["normalisation"].graph,
            Interface(Kind.VECTOR, 1),
            "node 'norm': channel_norm: it normalises over 1 channel; it needs at least 2",
        ),
        (
            huge(),
            Interface(Kind.VECTOR, 1024),
            "parameter 'w': 4096c is 4194304 at vector[1024] float32; at most 1048576",
        ),
    ],
)
def test_a_misfit_says_why_and_cannot_be_lowered(graph, interface, reason):
    assert match(graph, interface) == (False, reason)
    for refuse in (infer, lower):
        with pytest.raises(InvalidBlueprint) as caught:
            refuse(graph, interface)
        assert str(caught.value) == reason


def test_heads_that_divide_fit():
    assert match(attention(4), Interface(Kind.TOKENS, 8)) == (True, "fits tokens[8] float32")


@given(graphs(), interfaces())
def test_what_matches_can_be_lowered_and_nothing_else(graph, interface):
    fits, reason = match(graph, interface)
    if fits:
        lower(graph, interface, device="meta")
    else:
        with pytest.raises(InvalidBlueprint) as caught:
            lower(graph, interface, device="meta")
        assert str(caught.value) == reason
