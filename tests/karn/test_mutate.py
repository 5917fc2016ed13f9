"""Each move does what it says; splices hold both parents' inside; new operators take part without being named."""

from random import Random

import pytest

from esper.blueprint import operators
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.check import check
from esper.blueprint.ir import CHANNELS, Initialiser, Node, of_channels
from esper.karn.grammar import named, renew, settled, starts_of
from esper.karn.mutate import MOVES, mutate
from esper.karn.sample import sample
from esper.karn.splice import splice
from esper.karn.templates import TEMPLATES
from tests.karn.designs import INTERFACES, PARENTS

MAP = INTERFACES[0]


def after(move, title, tries=200):
    """All that a move makes of a template in a number of tries."""
    rng, graph = Random(0), TEMPLATES[title].graph
    return [made for _ in range(tries) if (made := mutate(graph, MAP, rng, (move,)))]


def attributes(graph, name):
    return {value for node in graph.nodes for key, value in node.attributes if key == name}


@pytest.mark.parametrize("move", MOVES)
def test_every_move_makes_something_of_some_template_and_all_of_it_is_well_formed(move):
    made = [(title, *change) for title in TEMPLATES for change in after(move, title, 10)]
    assert made
    for title, graph, words in made:
        check(graph)
        assert words and blueprint_id(graph) != blueprint_id(TEMPLATES[title].graph), (title, words)


def test_kernel_heads_and_widths_change_as_named():
    assert {frozenset(attributes(g, "kernel")) for g, _ in after("kernel", "conv3")} >= {frozenset({5}), frozenset({7})}
    assert {frozenset(attributes(g, "heads")) for g, _ in after("heads", "single_head_attention")} >= {frozenset({2})}
    for move, sign in (("widen", 1), ("rank", -1)):
        for graph, _ in after(move, "low_rank"):
            [before, now] = [min(o.resolve(64) for o in attributes(g, "out")) for g in (PLAIN, graph)]
            assert (now - before) * sign > 0 or graph.parameters[0].shape == PLAIN.parameters[0].shape


PLAIN = TEMPLATES["low_rank"].graph


def test_gates_norms_and_additions_come_before_what_is_zero():
    for move, operator in (("gate", "sigmoid"), ("norm", "norm")):
        for graph, _ in after(move, "wide_mlp"):
            added = [n.name for n in graph.nodes if operator in n.operator]
            assert added and not set(added) & settled(graph)


def test_a_depthwise_width_follows_its_input():
    wide = of_channels(multiply=2)
    near = Node("near", "conv", ("up",), ("w",), (("groups", "depthwise"), ("kernel", 3), ("out", CHANNELS)))
    nodes = (Node("up", "linear", ("input",), ("u",), (("out", wide),)), near, last("near"))
    graph = renew(nodes, "end", dict.fromkeys(("u", "w", "z"), Initialiser.ZEROS))
    assert attributes(graph, "out") == {wide, CHANNELS}
    assert check(graph).values["near"].channels == wide


def last(source):
    return Node("end", "linear", (source,), ("z",), (("out", CHANNELS),))


def test_a_shared_parameter_whose_users_differ_becomes_one_for_each():
    down = Node("down", "linear", ("input",), ("w",), (("out", of_channels(divide=2)),))
    up = Node("end", "linear", ("down",), ("w",), (("out", CHANNELS),))
    graph = renew((down, up), "end", {"w": Initialiser.ZEROS})
    assert [p.name for p in graph.parameters] == ["w", "end_weight"]


@pytest.mark.parametrize("interface", INTERFACES, ids=str)
def test_splices_are_well_formed_and_of_both(interface):
    rng, names = Random(1), sorted(PARENTS)
    ways = set()
    for _ in range(100):
        one, two = rng.sample(names, 2)
        if made := splice(PARENTS[one], PARENTS[two], rng):
            check(made[0])
            ways.add(made[1])
            assert named(made[0]).output
    assert ways == {"side by side", "inside of the second before the end of the first"}


def test_plain_names_change_nothing_and_shapes_are_found_again():
    for template in TEMPLATES.values():
        assert blueprint_id(named(template.graph)) == blueprint_id(template.graph)
        renewed = renew(template.graph.nodes, template.graph.output, starts_of(template.graph))
        assert blueprint_id(renewed) == blueprint_id(template.graph)


def test_a_new_row_of_the_operator_table_is_drawn_without_a_word(monkeypatch):
    row = operators.OPERATORS["relu"]
    monkeypatch.setitem(operators.OPERATORS, "relu_again", type(row)(**{**_fields(row), "name": "relu_again"}))
    rng = Random(0)
    drawn = [made.graph for _ in range(200) if (made := sample(MAP, rng))]
    assert any("relu_again" in {n.operator for n in graph.nodes} for graph in drawn)


def _fields(row):
    return {name: getattr(row, name) for name in row.__dataclass_fields__}
