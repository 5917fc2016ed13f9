"""What is otherwise in another graph: nothing exactly where the ids are equal."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.difference import difference
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter
from esper.karn.templates import TEMPLATES

from .strategies import commuted, graphs, renamed, reordered


@settings(max_examples=60)
@given(graphs(most=4), st.randoms(use_true_random=False))
def test_another_way_of_writing_is_no_difference(graph, randoms):
    assert difference(graph, commuted(reordered(renamed(graph, randoms), randoms), randoms)) == []


@settings(max_examples=150)
@given(graphs(most=3), graphs(most=3))
def test_there_is_a_difference_exactly_where_the_ids_differ(a, b):
    assert bool(difference(a, b)) == (blueprint_id(a) != blueprint_id(b))


def test_every_two_templates_differ():
    graphs_ = [t.graph for t in TEMPLATES.values()]
    assert all(difference(a, b) for a in graphs_ for b in graphs_ if a is not b)


def test_the_ways_in_which_graphs_differ_are_named():
    first = TEMPLATES["wide_mlp"].graph

    def with_node(name, **changes):
        return replace(first, nodes=tuple(replace(n, **changes) if n.name == name else n for n in first.nodes))

    def said(other):
        return list(map(str, difference(first, other)))

    assert said(with_node("active", operator="gelu")) == ["~ active (gelu): gelu instead of relu"]
    ones = tuple(replace(p, initialiser=Initialiser.ONES) if p.name == "expand_bias" else p for p in first.parameters)
    assert said(replace(first, parameters=ones)) == ["~ expand (linear): expand_bias starts from ones instead of zeros"]
    longer = Graph((*first.nodes, Node("end", "tanh", ("project",))), first.parameters, "end")
    assert said(longer) == ["+ end = tanh(project)", "~ the output is end instead of project"]
    assert list(map(str, difference(longer, first))) == [
        "- end = tanh(project)",
        "~ the output is project instead of end",
    ]
    assert said(TEMPLATES["prenorm_mlp"].graph)[:2] == [
        "+ norm = channel_norm(input) eps=1e-05",
        "~ expand (linear): takes norm instead of input",
    ]


def test_sharing_is_a_difference():
    out = (("out", CHANNELS),)

    def graph(*parameters):
        nodes = (Node("a", "linear", (INPUT,), ("w",), out), Node("b", "linear", ("a",), (parameters[-1],), out))
        return Graph(nodes, tuple(Parameter(p, (CHANNELS,) * 2, Initialiser.ONES) for p in parameters), "b")

    apart, shared = graph("w", "v"), graph("w")
    for one, other in ((apart, shared), (shared, apart)):
        assert any("is shared with other nodes" in str(change) for change in difference(one, other))


def test_a_setting_and_an_argument_are_named():
    def mixed(heads, *inputs):
        nodes = (Node("t", "tanh"), Node("m", "attention", inputs, (), (("heads", heads),)))
        return Graph(nodes, (), "m")

    assert list(map(str, difference(mixed(2, "t", "t", INPUT), mixed(4, "t", INPUT, INPUT)))) == [
        "~ m (attention): heads is 4 instead of 2",
        "~ m (attention): takes t, input, input instead of t, t, input",
    ]
