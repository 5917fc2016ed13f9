"""JSON of a graph: there and back, and what it can say wrongly."""

import json

import pytest
from hypothesis import given

from esper.blueprint.document import MAX_TEXT, read_json, write_json
from esper.blueprint.operators import OPERATORS
from esper.errors import InvalidBlueprint
from esper.karn.templates import TEMPLATES

from .strategies import graphs


@given(graphs(tuple(OPERATORS)))
def test_a_graph_survives_json(graph):
    assert read_json(write_json(graph)) == graph


@pytest.mark.parametrize("title", TEMPLATES)
def test_a_template_survives_json(title):
    text = write_json(TEMPLATES[title].graph)
    assert read_json(text) == TEMPLATES[title].graph
    assert json.loads(text)["version"] == 1


def changed(**fields):
    return json.dumps(json.loads(write_json(TEMPLATES["low_rank"].graph)) | fields)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "it is no JSON of a blueprint"),
        ("[1]", "it is no JSON of a blueprint"),
        ("{", "it is no JSON of a blueprint"),
        ("[" * 100_000, "it is no JSON of a blueprint"),
        (changed(nodez=[]), 'no field named "nodez"'),
        (changed(version=2), "version is 2; this operator set is version 1"),
        (changed(version="one"), "it is no JSON of a blueprint"),
        (changed(nodes=[{"name": "a", "operator": "fft"}]), "node 'a': operator 'fft' is unknown; known: add"),
        (changed(output="nowhere"), "output 'nowhere' is no node of the graph"),
        (" " * (MAX_TEXT + 1), f"at most {MAX_TEXT}"),
    ],
    ids=range(10),
)
def test_what_is_wrong_is_refused(text, error):
    with pytest.raises(InvalidBlueprint) as caught:
        read_json(text)
    assert error in str(caught.value)
