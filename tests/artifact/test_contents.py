"""Files interpreted: they must fit the body and each other."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from esper.artifact.body import GRAPH, MODULE, WEIGHTS, read_body
from esper.artifact.contents import (
    open_contents,
    open_graph,
    open_weights,
    read_graph_file,
    write_graph_file,
    write_weights_file,
)
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.interface import Interface, Kind
from esper.errors import Corrupt, InvalidBlueprint
from esper.karn.templates import TEMPLATES
from tests.blueprint.strategies import graphs

from .samples import MAP, built

BODY = read_body(built().manifest.body)


@pytest.mark.parametrize("title", TEMPLATES)
def test_a_graph_file_is_its_graph(title):
    graph = TEMPLATES[title].graph
    data = write_graph_file(graph)
    assert blueprint_id(read_graph_file(data)) == blueprint_id(graph)
    assert read_graph_file(data) == graph
    assert data == write_graph_file(read_graph_file(data))


@settings(max_examples=50)
@given(graph=graphs())
def test_any_graph_round_trips(graph):
    assert read_graph_file(write_graph_file(graph)) == graph


@pytest.mark.parametrize(
    "data", [b"", b'{"nodez":[]}', b'{"version":"x"}', b"[" * 10_000, b"\xff", b'{"output":"a","output":"b"}']
)
def test_bytes_that_are_no_graph_are_corrupt(data):
    with pytest.raises(Corrupt, match="is no blueprint graph"):
        read_graph_file(data)


def test_a_graph_that_is_not_well_formed_is_refused():
    with pytest.raises(InvalidBlueprint, match="the graph has 0 nodes"):
        read_graph_file(b'{"output":"a","version":1}')
    with pytest.raises(InvalidBlueprint, match="version is 0"):
        read_graph_file(b"[]")


def test_the_graph_is_the_one_the_body_names():
    assert blueprint_id(open_graph(BODY, built().files[GRAPH])) == BODY.blueprint_id
    other = write_graph_file(TEMPLATES["low_rank"].graph)
    with pytest.raises(Corrupt, match=f"is blueprint [0-9a-f]+; the body says {BODY.blueprint_id}"):
        open_graph(BODY, other)
    with pytest.raises(Corrupt, match="cannot be lowered for vector"):
        open_graph(replace(BODY, interface=Interface(Kind.VECTOR, 8)), built().files[GRAPH])
    with pytest.raises(Corrupt, match="the body lists others"):
        open_graph(replace(BODY, parameters=BODY.parameters[:-1]), built().files[GRAPH])


def test_weights_are_in_the_bodys_order_and_as_it_lists_them():
    weights = open_weights(BODY, built().files[WEIGHTS])
    assert list(weights) == [parameter.name for parameter in BODY.parameters]
    assert not any(weights[name].any() for name in ("project_weight", "project_bias"))
    assert weights["near_weight"].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {k: v for k, v in w.items() if k != "near_bias"},
        lambda w: {**w, "more": torch.zeros(1)},
        lambda w: {**w, "near_bias": torch.zeros(9)},
        lambda w: {**w, "near_bias": torch.zeros(8, dtype=torch.float64)},
    ],
)
def test_other_weights_are_corrupt(change):
    weights = open_weights(BODY, built().files[WEIGHTS])
    with pytest.raises(Corrupt, match="differ from the parameters the body lists"):
        open_weights(BODY, write_weights_file(change(weights)))


@pytest.mark.parametrize("data", [b"", b"junk" * 10, b"\xff" * 8 + b"{}"])
def test_bytes_that_are_no_weights_are_corrupt(data):
    with pytest.raises(Corrupt, match="is no safetensors file"):
        open_weights(BODY, data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_files_are_reproducible_in_every_type(dtype):
    weights = {"b": torch.ones(3, dtype=dtype), "a": torch.arange(4, dtype=dtype).reshape(2, 2).t()}
    assert write_weights_file(weights) == write_weights_file(dict(reversed(weights.items())))


def test_contents_are_all_of_it():
    contents = open_contents(BODY, built().files)
    assert contents.body.interface == MAP
    h = MAP.example(2, 3, 3)
    assert not contents.form(h, *contents.weights.values()).any()  # zero at birth
    with pytest.raises(Corrupt):
        open_contents(BODY, {**built().files, MODULE: built().files[WEIGHTS]})
