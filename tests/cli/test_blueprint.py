"""`esper blueprint`: show, diff and new, on files, template titles and a served library."""

import json
import xml.etree.ElementTree as ET

import pytest

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import write_graph
from esper.blueprint.document import read_json, write_json
from esper.blueprint.parse import parse
from esper.blueprint.text import show
from esper.karn.templates import TEMPLATES
from tests.urza import fakes

from .test_library import PARENT, served

__all__ = ["served"]
CONV3 = TEMPLATES["conv3"].graph


def test_show_prints_the_blueprint_its_id_and_where_it_fits(esper):
    said = esper("blueprint", "show", "conv3", "--channels", "8")
    assert said.status == 0
    assert said.out.startswith(show(CONV3))
    assert f"id {blueprint_id(CONV3)}\n" in said.out
    assert "the output is zero at birth" in said.out
    assert "map2d[8] float32" in said.out
    assert "vector[8] float32: does not fit: node 'near': conv needs positions" in said.out


def test_show_as_json_prints_nothing_else_and_a_picture_is_written_beside(esper, tmp_path):
    said = esper("blueprint", "show", "conv3", "--json", "--svg", "conv3.svg")
    assert read_json(said.out) == CONV3
    assert "conv3" in ET.parse(tmp_path / "conv3.svg").getroot()[0].text


def test_a_picture_replaces_an_earlier_picture_and_nothing_else(esper, tmp_path):
    esper("blueprint", "new", "mine.txt", "--kind", "vector")
    (tmp_path / "notes.md").write_text("my notes")
    before = (tmp_path / "mine.txt").read_text()
    cases = [
        (("show", "mine.txt", "--svg", "mine.txt"), "would replace the blueprint itself"),
        (("new", "mine.txt", "--svg", "./mine.txt"), "would replace the blueprint itself"),
        (("new", "fresh.txt", "--kind", "vector", "--svg", "fresh.txt"), "would replace the blueprint itself"),
        (("show", "conv3", "--svg", "notes.md"), "would replace a file that is no SVG"),
    ]
    for arguments, words in cases:
        said = esper("blueprint", *arguments)
        assert said.status == 1 and said.out == "" and words in said.err, said
    assert (tmp_path / "mine.txt").read_text() == before and (tmp_path / "notes.md").read_text() == "my notes"
    assert not (tmp_path / "fresh.txt").exists()
    for name in ("conv3", "mine.txt"):
        assert esper("blueprint", "show", name, "--svg", "picture.svg").status == 0
    assert "mine.txt" in ET.parse(tmp_path / "picture.svg").getroot()[0].text


@pytest.mark.parametrize("kind", ["vector", "tokens", "map1d", "map2d"])
@pytest.mark.parametrize("name", ["mine.txt", "mine.json"])
def test_new_writes_a_file_that_it_then_finds_right(esper, tmp_path, kind, name):
    made = esper("blueprint", "new", name, "--kind", kind)
    text = (tmp_path / name).read_text()
    graph = read_json(text) if name.endswith(".json") else parse(text)
    assert made.status == 0 and f"id {blueprint_id(graph)}" in made.out
    assert next(line for line in made.out.splitlines() if line.startswith(f"  {kind}[64] float32 "))
    assert esper("blueprint", "new", name).out == made.out
    assert esper("blueprint", "show", name).out == made.out


def test_an_edit_is_a_difference(esper, tmp_path):
    (tmp_path / "a.txt").write_text(show(CONV3).replace("kernel=3", "kernel=5").replace("[c, c, 3]", "[c, c, 5]"))
    (tmp_path / "b.json").write_text(write_json(CONV3))
    assert esper("blueprint", "diff", "b.json", "conv3").out == f"the same blueprint, {blueprint_id(CONV3)[:16]}\n"
    said = esper("blueprint", "diff", "conv3", "a.txt")
    assert said.out.splitlines() == [
        "~ near (conv): kernel is 5 instead of 3",
        "~ near (conv): near_weight is [c, c, 5] instead of [c, c, 3]",
    ]
    found = json.loads(esper("blueprint", "diff", "conv3", "a.txt", "--json").out)
    assert found["first"] == blueprint_id(CONV3)
    assert found["changes"][0] == {"mark": "~", "text": "near (conv): kernel is 5 instead of 3"}


@pytest.fixture
def real(monkeypatch):
    """The second blueprint of the served library is conv3; its name there."""
    stand_in = fakes.graph
    monkeypatch.setattr(fakes, "graph", lambda number=0: write_graph(CONV3) if number == 2 else stand_in(number))
    return fakes.identify(write_graph(CONV3))


def test_a_blueprint_of_a_served_library_is_found_by_the_digits_of_its_id(esper, real, served):
    said = esper("blueprint", "show", real[:10])
    assert said.status == 0, said.err
    assert f"id {blueprint_id(CONV3)}\n" in said.out
    assert esper("blueprint", "diff", real[:8], "conv3").out.startswith("the same blueprint")
    wrong = esper("blueprint", "show", "best/one")
    assert wrong.status == 1 and "best/one is a kernel" in wrong.err
    unknown = esper("blueprint", "show", PARENT[:10])  # its operator is one that nobody has
    assert unknown.status == 1 and "operator 'scale_1' is unknown; known: add" in unknown.err


def test_what_is_wrong_is_one_line_and_nothing_is_written(esper, tmp_path):
    (tmp_path / "bad.txt").write_text("a = rellu(input)\nreturn a\n")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    cases = {
        ("new", "bad.txt"): "bad.txt: line 1, column 5: operator 'rellu' is unknown; did you mean 'relu'?",
        ("new", "bad.json"): "bad.json: version is 0; this operator set is version 1",
        ("new", "bytes.txt"): "bytes.txt cannot be read as text",
        ("new", "none.txt"): "there is no file none.txt; --kind vector|tokens|map1d|map2d writes one to start from",
        ("new", "bad.txt", "--kind", "map2d"): "bad.txt exists and is left as it is",
        ("new", "no/where.txt", "--kind", "map2d"): "no/where.txt cannot be written: No such file or directory",
        ("show", "none.json"): "there is no file none.json",
        (
            "show",
            "con3",
        ): "no file and no title of the template library; did you mean 'conv3'?; no runtime runs",
        ("show", "conv3", "--svg", "no/where.svg"): "no/where.svg cannot be written",
        ("show", "conv3", "--channels", "0"): "interface channels is 0; it must be 1 to 1048576",
        ("diff", "conv3", "none.txt"): "there is no file none.txt",
    }
    before = (tmp_path / "bad.txt").read_text()
    for arguments, error in cases.items():
        said = esper("blueprint", *arguments)
        assert said.status == 1 and said.out == "", arguments
        assert said.err.startswith("esper: ") and error in said.err, said.err
        assert "Traceback" not in said.err
    assert (tmp_path / "bad.txt").read_text() == before
