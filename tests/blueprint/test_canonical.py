"""Identity: what enters a blueprint's id and what does not."""

import hashlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.blueprint.canonical import MAX_SYMMETRIES, blueprint_id, canonical
from esper.blueprint.ir import CHANNELS, INPUT, Dimension, Graph, Initialiser, Node, Parameter
from esper.blueprint.operators import OPERATORS
from esper.errors import InvalidBlueprint
from esper.karn.templates import TEMPLATES

from .strategies import bigger, commuted, graphs, renamed, reordered

EVERY = tuple(OPERATORS)
WEIGHT = (CHANNELS, CHANNELS)
OUT = (("out", CHANNELS),)


def weight(name, initialiser=Initialiser.LECUN_UNIFORM):
    return Parameter(name, WEIGHT, initialiser)


def linear(name, source, parameter):
    return Node(name, "linear", (source,), (parameter,), OUT)


@given(graphs(EVERY), st.randoms(use_true_random=False))
def test_names_list_order_and_argument_order_do_not_enter(graph, random):
    other = commuted(reordered(renamed(graph, random), random), random)
    assert canonical(other).text == canonical(graph).text


@given(graphs(EVERY), st.randoms(use_true_random=False))
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


def test_an_implied_default_is_left_out_and_another_value_enters():
    def graph(**attributes):
        return Graph((Node("n", "attention", (INPUT,) * 3, (), tuple(attributes.items())),), (), "n")

    assert b"heads=1)" in canonical(graph()).text
    assert blueprint_id(graph()) == blueprint_id(graph(window=0, sharing=1, bias="none"))
    assert len({blueprint_id(graph(window=w)) for w in (0, 1, 2)}) == 3
    assert b"(v0,v0,v0;;bias=alibi,heads=2,window=3)" in canonical(graph(window=3, heads=2, bias="alibi")).text


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
    ids = {title: blueprint_id(template.graph) for title, template in TEMPLATES.items()}
    assert len(set(ids.values())) == len(ids)
    assert ids == LIBRARY_IDS


LIBRARY_IDS = {
    "bottleneck_conv": "e35c0fed45725e7059201b0fe6c64c6a199f8b9e4bf0549b78b4b19aea3acd53",
    "bottleneck_mlp": "387c2d307d673a0bad57dc17d76f6b568ebaabf73ac0bb1a74af0d85b98a5327",
    "causal_depthwise": "ee5c93b1b643e9d4a54489992a0d4a0dbf0ec1dd9b168a38cdee47e53f36b20f",
    "channel_scale": "869b9f43aa00b1f4b55165ecfa278c4faeaad1686fe2d0b2c0c756b042baa6c1",
    "conformer_conv": "a83290b46909276258262a452521b35015917db54c0cd1e17ba0e210f738dc1f",
    "conv3": "c9eee3854e8e668c002ff8768361fcc0d0d83dfceea18346ffedae0ed1964d4b",
    "conv_mixer": "bcb000985bfca5c5fd5fa7802eb82448762752779de79ff8d2c4abf2c29d2470",
    "convnext": "b4e8f181331a1fcecaf99ced58fc9459642bfb4b18d264540054e7087e484f87",
    "depthwise_separable": "e6b4898b963f057a4d26efecbe693729c3053af3bc4848edce1a1963e9abd5a3",
    "four_head_attention": "c874bf66949be577cd7cabda8523b9d1a2411f7ce94aed8af206de1c52a697f2",
    "gated_attention": "e457d22a2240a9d6c527cc22a14a17b19f9ac786c43e7dbf6cd767361926e7b4",
    "gated_conv": "41c392e09a45bcdf613a3fea22ad008d98dbdaa6fb8f7789ef6468828102d91e",
    "geglu_mlp": "a77f9dae330a43b74c74e1483b4d97e4b8668f6b7a79031df074d28b391ac3c4",
    "glu_mlp": "c23c2b8efed53bd07ce9f2e31ce177bc1d76c74c576bacd2418f0a9be98563af",
    "highway": "d77f47e2a180e2671fe376f022a1b5a5023fb88ed3271ca43ded8479340bdb9f",
    "inverted_bottleneck": "a58c13e9a69043a47477a836eb8276b67f591c6a3cdfbc9bb92cfa53a7ca43df",
    "large_kernel_attention": "adf6e09be5c7e77aafc38bd4d3be204c3d0008df99d364f13aae07927409ee77",
    "layer_scale_mlp": "ea6e3e9f0afdc5a608fa640624e0edba7a942bf12c0cbec4ef3e50d59deaa38e",
    "low_rank": "6b98cce07cf7ffc1dfecc20e943873400f4f4161e8fe587be89f3a09167c2721",
    "normalisation": "ac0ec6b79b6a54963cca620b47e77abd05eb1b18c746194f4a79a6db2b4f99d3",
    "preactivation_conv": "e3ba6e2298d77915469848706c75b8dbbb570732ff4b89efc24d0873fcf28759",
    "prenorm_mlp": "9e5d0fc76408876a471590aa68c75736a55a6e7e82c171ac97fe68f2b46d76ea",
    "single_head_attention": "41e0d183e32cafd324a29cacee615eabe5682673413fde3954e71d67fce34eb0",
    "spatial_gate": "b7533db633189ed2849617bde02743885e7b528bb9168a7ae732325041e0affe",
    "squared_relu_mlp": "f772caa90d2146910a8505d306595479a383a866a256971457e98dca03fde219",
    "squeeze_excitation": "8d9eace41adf8443bc8c6a70dc21ccdbd07ba76e3ba829ea0c0440c66fb571e7",
    "swiglu_mlp": "c2e321952d0a9e274b91bb8b07201c834d8ff60d03bc833c97c0c0de3763b6c2",
    "swish_mlp": "c4d639e738902708eac5425fe1496d791f4933ac7180e764f10cd5faf5529fc7",
    "thin_adapter": "e402e51b84b6836b49cecaa1b119f62792f0d336946f0559ddcd5d7c55f49d64",
    "two_scales": "4503ed60291fd3cd2b10ce9c6cf2aa90503f95e8c5ddaa330500214ca1fe2b9d",
    "wide_mlp": "183172decc55c28244184a499e31721a44d4ff064a9990ba684d891903d7a19d",
}


@settings(max_examples=30)
@given(graphs(most=3), graphs(most=3))
def test_equal_text_means_equal_structure(a, b):
    """No two graphs of different operators share bytes."""
    if canonical(a).text == canonical(b).text:
        assert sorted(s.node.operator for s in canonical(a).steps) == sorted(
            s.node.operator for s in canonical(b).steps
        )
