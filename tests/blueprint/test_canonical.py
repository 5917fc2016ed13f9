"""Identity: what enters a blueprint's id and what does not."""

import hashlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.blueprint.canonical import MAX_SYMMETRIES, blueprint_id, canonical
from esper.blueprint.ir import CHANNELS, INPUT, Dimension, Graph, Initialiser, Node, Parameter
from esper.errors import InvalidBlueprint
from esper.karn.templates import TEMPLATES

from .strategies import bigger, commuted, graphs, renamed, reordered

WEIGHT = (CHANNELS, CHANNELS)
OUT = (("out", CHANNELS),)


def weight(name, initialiser=Initialiser.LECUN_UNIFORM):
    return Parameter(name, WEIGHT, initialiser)


def linear(name, source, parameter):
    return Node(name, "linear", (source,), (parameter,), OUT)


@given(graphs(), st.randoms(use_true_random=False))
def test_names_list_order_and_argument_order_do_not_enter(graph, random):
    other = commuted(reordered(renamed(graph, random), random), random)
    assert canonical(other).text == canonical(graph).text


@given(graphs(), st.randoms(use_true_random=False))
def test_canonical_parameters_correspond_under_every_way_of_writing(graph, random):
    other = renamed(graph, random)
    theirs = [(p.shape, p.initialiser) for p in canonical(other).parameters]
    assert theirs == [(p.shape, p.initialiser) for p in canonical(graph).parameters]


def _changed_parameter(graph, data):
    i = data.draw(st.integers(0, len(graph.parameters) - 1))
    changed = replace(graph.parameters[i], initialiser=Initialiser.HE_UNIFORM)
    return replace(graph, parameters=(*graph.parameters[:i], changed, *graph.parameters[i + 1 :]))


@given(graphs(), st.data())
def test_an_initialiser_enters(graph, data):
    if graph.parameters:
        assert blueprint_id(_changed_parameter(graph, data)) != blueprint_id(graph)


@pytest.mark.parametrize("title", TEMPLATES)
def test_an_activation_in_place_of_another_enters(title):
    graph = TEMPLATES[title].graph
    for i, node in enumerate(graph.nodes):
        if node.operator in ("relu", "gelu", "tanh"):
            nodes = (*graph.nodes[:i], replace(node, operator="silu"), *graph.nodes[i + 1 :])
            assert blueprint_id(replace(graph, nodes=nodes)) != blueprint_id(graph)


def hidden(size: Dimension) -> Graph:
    return Graph(
        (
            Node("a", "linear", (INPUT,), ("w",), (("out", size),)),
            Node("b", "linear", ("a",), ("v",), OUT),
        ),
        (Parameter("w", (size, CHANNELS), Initialiser.ONES), Parameter("v", (CHANNELS, size), Initialiser.ZEROS)),
        "b",
    )


@given(st.booleans(), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_dimension_enters_in_lowest_terms(of_channels, multiply, divide, minimum):
    size = Dimension(of_channels, multiply, divide, minimum)
    assert blueprint_id(hidden(bigger(size))) != blueprint_id(hidden(size))
    twice = Dimension(of_channels, (multiply or 1) * 2, (divide or 1) * 2, minimum or 1)
    assert blueprint_id(hidden(twice)) == blueprint_id(hidden(size))
    assert all(twice.resolve(channels) == size.resolve(channels) for channels in (1, 2, 7, 64, 100))


def test_sharing_a_parameter_is_not_having_two_equal_ones():
    shared = Graph((linear("a", INPUT, "w"), linear("b", "a", "w")), (weight("w"),), "b")
    apart = Graph((linear("a", INPUT, "w"), linear("b", "a", "v")), (weight("w"), weight("v")), "b")
    assert blueprint_id(shared) != blueprint_id(apart)


def test_which_of_two_equal_parameters_is_shared_enters_under_a_commutative_operator():
    def graph(reused):
        nodes = (
            linear("a", INPUT, "w"),
            Node("b", "relu", ("a",)),
            linear("c", INPUT, "v"),
            Node("d", "add", ("b", "c")),
            linear("e", "d", reused),
        )
        return Graph(nodes, (weight("w"), weight("v")), "e")

    assert blueprint_id(graph("w")) != blueprint_id(graph("v"))


def branches(count, reused=0, backwards=False):
    """Sum of `count` equal linear branches, then one of their weights again."""
    names = [f"w{i}" for i in range(count)]
    nodes = [linear(f"b{i}", INPUT, name) for i, name in enumerate(names)]
    total = "b0"
    for i in range(1, count):
        pair = (f"b{i}", total) if backwards else (total, f"b{i}")
        nodes.append(Node(f"s{i}", "add", pair))
        total = f"s{i}"
    nodes.append(linear("last", total, names[reused]))
    return Graph(tuple(nodes), tuple(weight(name) for name in names), "last")


def test_equal_branches_are_one_graph_whichever_comes_first():
    assert blueprint_id(branches(2, 0)) == blueprint_id(branches(2, 1)) == blueprint_id(branches(2, 1, True))
    assert blueprint_id(branches(3, 2)) == blueprint_id(branches(3, 2, True))
    assert blueprint_id(branches(3, 2)) != blueprint_id(branches(3, 0))


def balanced(count):
    """A balanced tree of sums over `count` equal branches: every two leaves can change places."""
    nodes = [linear(f"b{i}", INPUT, f"w{i}") for i in range(count)]
    level = [node.name for node in nodes]
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=True))
        sums = [Node(f"{a}_{len(level)}", "add", (a, b)) for a, b in pairs]
        nodes += sums
        level = [node.name for node in sums]
    return Graph(tuple(nodes), tuple(weight(f"w{i}") for i in range(count)), level[0])


def test_symmetric_trees_have_one_identity():
    graph = balanced(8)
    assert blueprint_id(commuted(reordered(graph, random.Random(1)), random.Random(2))) == blueprint_id(graph)


def test_too_much_symmetry_is_refused_with_the_limit():
    with pytest.raises(InvalidBlueprint, match=f"more than {MAX_SYMMETRIES} parameters can change places"):
        blueprint_id(balanced(256))


def test_equal_expressions_are_one_value():
    twice = Graph(
        (Node("a", "tanh"), Node("b", "tanh"), Node("c", "mul", ("a", "b"))),
        (),
        "c",
    )
    once = Graph((Node("a", "tanh"), Node("c", "mul", ("a", "a"))), (), "c")
    assert blueprint_id(twice) == blueprint_id(once)
    assert len(canonical(twice).steps) == 2


def test_a_default_is_the_value_it_stands_for():
    implicit = Graph((Node("n", "channel_norm"),), (), "n")
    explicit = Graph((Node("n", "channel_norm", attributes=(("eps", 1e-5),)),), (), "n")
    other = Graph((Node("n", "channel_norm", attributes=(("eps", 1e-6),)),), (), "n")
    assert blueprint_id(implicit) == blueprint_id(explicit) != blueprint_id(other)


def test_a_deep_graph_needs_no_recursion():
    nodes = [Node("n0", "tanh")] + [Node(f"n{i}", "tanh", (f"n{i - 1}",)) for i in range(1, 1024)]
    assert len(canonical(Graph(tuple(nodes), (), "n1023")).steps) == 1024


def test_the_form_is_the_documented_text():
    size = Dimension(True, 1, 4, 4)
    text = (
        "esper blueprint 1\n"
        "p0 = ones[max(4,c*1/4),max(1,c*1/1)]\n"
        "p1 = zeros[max(1,c*1/1),max(4,c*1/4)]\n"
        "v1 = linear(v0;p0;out=max(4,c*1/4))\n"
        "v2 = linear(v1;p1;out=max(1,c*1/1))\n"
    )
    assert canonical(hidden(size)).text == text.encode()
    assert blueprint_id(hidden(size)) == hashlib.sha256(text.encode()).hexdigest()


def test_library_ids_are_distinct_and_do_not_drift():
    ids = {title: blueprint_id(template.graph)[:12] for title, template in TEMPLATES.items()}
    assert len(set(ids.values())) == len(ids)
    assert ids == LIBRARY_IDS


LIBRARY_IDS = {
    "bottleneck_conv": "e35c0fed4572",
    "bottleneck_mlp": "387c2d307d67",
    "causal_depthwise": "ee5c93b1b643",
    "channel_scale": "869b9f43aa00",
    "conformer_conv": "a83290b46909",
    "conv3": "c9eee3854e8e",
    "conv_mixer": "bcb000985bfc",
    "convnext": "b4e8f181331a",
    "depthwise_separable": "e6b4898b963f",
    "four_head_attention": "c874bf66949b",
    "gated_attention": "e457d22a2240",
    "gated_conv": "41c392e09a45",
    "geglu_mlp": "a77f9dae330a",
    "glu_mlp": "c23c2b8efed5",
    "highway": "d77f47e2a180",
    "inverted_bottleneck": "a58c13e9a690",
    "large_kernel_attention": "adf6e09be5c7",
    "layer_scale_mlp": "ea6e3e9f0afd",
    "low_rank": "6b98cce07cf7",
    "normalisation": "ac0ec6b79b6a",
    "preactivation_conv": "e3ba6e2298d7",
    "prenorm_mlp": "9e5d0fc76408",
    "single_head_attention": "41e0d183e32c",
    "spatial_gate": "b7533db63318",
    "squared_relu_mlp": "f772caa90d21",
    "squeeze_excitation": "8d9eace41adf",
    "swiglu_mlp": "c2e321952d0a",
    "swish_mlp": "c4d639e73890",
    "thin_adapter": "e402e51b84b6",
    "two_scales": "4503ed60291f",
    "wide_mlp": "183172decc55",
}


@settings(max_examples=30)
@given(graphs(most=3), graphs(most=3))
def test_equal_text_means_equal_structure(a, b):
    """No two graphs of different operators share bytes."""
    if canonical(a).text == canonical(b).text:
        assert sorted(s.node.operator for s in canonical(a).steps) == sorted(
            s.node.operator for s in canonical(b).steps
        )
