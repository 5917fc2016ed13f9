"""The picture of a graph: every node and edge once, no two boxes on each other, text escaped, the same every time."""

import itertools
import xml.etree.ElementTree as ET
from collections import Counter

import pytest
from hypothesis import given, settings

from esper.blueprint.canonical import canonical
from esper.blueprint.ir import INPUT, Graph, Node
from esper.blueprint.operators import OPERATORS
from esper.blueprint.picture import picture
from esper.karn.templates import TEMPLATES

from .strategies import graphs

SVG = "{http://www.w3.org/2000/svg}"


def drawn(graph, name=""):
    return ET.fromstring(picture(graph, name))


def is_whole(graph):
    root, form = drawn(graph), canonical(graph)
    names = [INPUT, *(step.node.name for step in form.steps)]
    groups = root.findall(f"{SVG}g")
    assert Counter(g.get("data-node") for g in groups) == Counter(names)
    edges = Counter((p.get("data-from"), p.get("data-to")) for p in root.findall(f"{SVG}path"))
    wanted = {(names[i], step.node.name) for step in form.steps for i in step.inputs}
    assert edges == Counter(wanted)
    boxes = [tuple(float(g.find(f"{SVG}rect").get(k)) for k in ("x", "y", "width", "height")) for g in groups]
    width, height = float(root.get("width")), float(root.get("height"))
    for x, y, w, h in boxes:
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    for (ax, ay, aw, ah), (bx, by, bw, bh) in itertools.combinations(boxes, 2):
        assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay
    edges_point_down(root, dict(zip((g.get("data-node") for g in groups), boxes, strict=True)))


def edges_point_down(root, boxes):
    """Every edge leaves the lower side of its source and meets the upper side of its user."""
    for path in root.findall(f"{SVG}path"):
        numbers = [float(n) for n in path.get("d").replace("M", "").replace("C", " ").split()]
        (x0, y0), (x1, y1) = numbers[:2], numbers[-2:]
        a, b = boxes[path.get("data-from")], boxes[path.get("data-to")]
        assert a[0] <= x0 <= a[0] + a[2] and y0 == pytest.approx(a[1] + a[3], abs=0.15)
        assert b[0] <= x1 <= b[0] + b[2] and y1 == pytest.approx(b[1], abs=0.15)


@settings(max_examples=60)
@given(graphs(tuple(OPERATORS), most=14))
def test_a_random_graph_is_whole(graph):
    is_whole(graph)


@pytest.mark.parametrize("title", TEMPLATES)
def test_a_template_is_whole(title):
    is_whole(TEMPLATES[title].graph)


def test_a_graph_of_40_nodes_with_long_edges_is_whole():
    nodes = [Node("n0", "tanh")]
    for i in range(1, 40):
        other = f"n{i - 7}" if i >= 7 and i % 3 == 0 else INPUT
        nodes.append(Node(f"n{i}", "add" if i % 2 else "mul", (f"n{i - 1}", other)))
    is_whole(Graph(tuple(nodes), (), "n39"))


def test_what_is_written_is_escaped_and_said():
    root = drawn(TEMPLATES["squeeze_excitation"].graph, '<b> & "quoted"')
    title, words = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title.text == 'Blueprint <b> & "quoted"'
    assert "gated is mul of" in words.text
    assert root.get("aria-labelledby").split() == [title.get("id"), words.get("id")]
    assert root.get("role") == "img"


def test_it_needs_nothing_else_and_is_the_same_every_time():
    graph = TEMPLATES["gated_attention"].graph
    text = picture(graph)
    canonical.cache_clear()
    assert picture(graph) == text
    assert "<script" not in text and "href" not in text and text.count("http") == 1
    ids = [e.get("id") for e in ET.fromstring(text).iter() if e.get("id")]
    assert len(ids) == len(set(ids))
