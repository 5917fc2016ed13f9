"""Which interfaces a graph fits, and the reason where it does not."""

import pytest
import torch
from hypothesis import given

from esper.blueprint.infer import infer
from esper.blueprint.interface import DTYPES, Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, of_channels
from esper.blueprint.lower import lower
from esper.blueprint.matching import match
from esper.errors import InvalidBlueprint, InvalidRequest
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


def of(operator, *inputs, **attributes):
    """A graph of one node without parameters."""
    return Graph((Node("a", operator, inputs or (INPUT,), (), tuple(attributes.items())),), (), "a")


def joined(*nodes):
    return Graph(nodes, (), nodes[-1].name)


HALVES = joined(
    Node("left", "split", (INPUT,), (), (("part", 0), ("parts", 2))),
    Node("right", "split", (INPUT,), (), (("part", 1), ("parts", 2))),
    Node("both", "concat", ("right", "left")),
)
GATED = joined(Node("twice", "concat", (INPUT, INPUT)), Node("gate", "glu", ("twice",)))
SHARED = joined(
    Node("few", "split", (INPUT,), (), (("part", 0), ("parts", 2))),
    Node("mix", "attention", (INPUT, "few", "few"), (), (("heads", 4), ("sharing", 2))),
)
TOKENS, CAUSAL = Interface(Kind.TOKENS, 8), Interface(Kind.TOKENS, 8, causal=True)
MAP1D, MAP2D, VECTOR = Interface(Kind.MAP1D, 8), Interface(Kind.MAP2D, 8), Interface(Kind.VECTOR, 8)


@pytest.mark.parametrize(
    ("what", "graph", "fits", "misfits", "reason"),
    [
        ("rank", of("shift", axis=1, by=1), MAP2D, MAP1D, "node 'a': shift: axis 1; map1d has 1, counted from 0"),
        ("rank", of("flip"), TOKENS, VECTOR, "node 'a': flip needs positions; vector[8] float32 has none"),
        ("rank", of("group_norm", groups=2), MAP2D, VECTOR, "group_norm needs positions; vector[8] float32 has none"),
        (
            "kind",
            of("rotary"),
            TOKENS,
            MAP2D,
            "node 'a': rotary needs positions in one order; map2d[8]",
        ),
        ("kind", of("rotary"), MAP1D, VECTOR, "node 'a': rotary needs positions; vector[8] float32 has none"),
        ("kind", of("sinusoid"), MAP1D, MAP2D, "sinusoid needs positions in one order; map2d[8] float32 has two"),
        (
            "kind",
            of("attention", *(INPUT,) * 3, window=3),
            TOKENS,
            MAP2D,
            "attention: window and bias need positions in one order; map2d has two",
        ),
        ("causal", of("flip"), TOKENS, CAUSAL, "flip looks at later positions; tokens[8] float32 causal forbids it"),
        ("causal", of("position_norm"), TOKENS, CAUSAL, "position_norm looks at later positions"),
        ("causal", of("shift", by=1), CAUSAL, Interface(Kind.VECTOR, 8), "shift needs positions"),
        (
            "causal",
            of("shift", by=-1),
            TOKENS,
            CAUSAL,
            "shift: by -1 looks at later positions",
        ),
        ("channels", HALVES, VECTOR, Interface(Kind.VECTOR, 7), "split: 7 channels have no 2 equal parts"),
        ("channels", of("channel_shuffle", groups=4), TOKENS, Interface(Kind.TOKENS, 6), "4 groups do not divide 6"),
        ("channels", of("rotary", heads=2), TOKENS, Interface(Kind.TOKENS, 6), "6 channels are no pairs in 2 heads"),
        ("channels", of("sinusoid"), TOKENS, Interface(Kind.TOKENS, 5), "5 channels are no pairs"),
        (
            "channels",
            of("softmax"),
            VECTOR,
            Interface(Kind.VECTOR, 1),
            "softmax: over 1 channel it is 1",
        ),
        ("channels", of("group_norm", groups=4), MAP2D, Interface(Kind.MAP2D, 4), "4 groups of 1 channel; each needs"),
        ("channels", of("group_norm", groups=4), MAP2D, Interface(Kind.MAP2D, 6), "4 groups do not divide 6 channels"),
        ("channels", SHARED, TOKENS, Interface(Kind.TOKENS, 6), "4 heads do not divide the query's 6 channels"),
        (
            "channels",
            of("rms_norm"),
            VECTOR,
            Interface(Kind.VECTOR, 1),
            "it normalises over 1 channel; it needs at least 2",
        ),
    ],
)
def test_what_an_operator_needs_is_asked_and_said(what, graph, fits, misfits, reason):
    assert match(graph, fits) == (True, f"fits {fits}")
    answer, why = match(graph, misfits)
    assert not answer and reason in why, (what, why)
    with pytest.raises(InvalidBlueprint):
        lower(graph, misfits)


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 64, 1000])
def test_symbolic_channels_fit_every_count(channels):
    for graph in (TEMPLATES["wide_mlp"].graph, TEMPLATES["low_rank"].graph, GATED):
        assert match(graph, Interface(Kind.VECTOR, channels))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_type_of_an_interface_is_fitted(dtype):
    for title, template in TEMPLATES.items():
        assert match(template.graph, Interface(Kind.MAP2D, 8, dtype))[0], title


def test_an_element_type_that_no_interface_has_is_refused_there():
    with pytest.raises(InvalidRequest, match=r"interface dtype is torch\.int32; it must be one of float32, bfloat16"):
        Interface(Kind.MAP2D, 8, torch.int32)


def test_a_chunk_of_the_channels_is_matched_by_its_own_count():
    """A slot that spans a chunk offers the chunk: an interface with that many channels."""
    whole, chunk = Interface(Kind.TOKENS, 8), Interface(Kind.TOKENS, 6)
    assert match(attention(4), whole)[0]
    assert match(attention(3), chunk)[0]
    assert match(attention(4), chunk) == (False, "node 'mix': attention: 4 heads do not divide the query's 6 channels")


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
