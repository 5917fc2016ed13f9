"""docs/blueprint-ir.md says what the code does."""

import re
from pathlib import Path

from esper.blueprint.canonical import blueprint_id, canonical
from esper.blueprint.emit import emit_function
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.operators import OPERATORS, operator_table
from esper.blueprint.text import show
from esper.karn.templates import TEMPLATES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "blueprint-ir.md").read_text()


def test_the_operator_table_is_the_one_in_the_code():
    assert operator_table() in DOCUMENT, "write operator_table()'s text into docs/blueprint-ir.md"


def test_every_operator_has_a_row():
    assert set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)) == set(OPERATORS)


def test_the_example_is_what_the_code_makes_of_it():
    graph = TEMPLATES["squeeze_excitation"].graph
    assert show(graph) in DOCUMENT
    assert canonical(graph).text.decode() in DOCUMENT
    assert blueprint_id(graph) in DOCUMENT
    assert emit_function(graph, Interface(Kind.MAP2D, 16), "squeeze_excitation") in DOCUMENT
