"""Graph and Interface messages: round trips, and what the wire can carry wrongly."""

import pytest
import torch
from hypothesis import given

from esper.api.common.v1 import blueprint_pb2 as pb
from esper.api.common.v1 import interface_pb2 as interface_pb
from esper.blueprint.codec import read_graph, read_interface, write_graph, write_interface
from esper.blueprint.interface import DTYPES, Interface, Kind
from esper.blueprint.operators import OPERATORS
from esper.errors import InvalidBlueprint, InvalidRequest
from esper.karn.templates import TEMPLATES

from .strategies import graphs, interfaces


@given(graphs(tuple(OPERATORS)))
def test_a_graph_survives_the_wire(graph):
    assert read_graph(pb.Graph.FromString(write_graph(graph).SerializeToString())) == graph


@pytest.mark.parametrize("title", TEMPLATES)
def test_a_template_survives_the_wire(title):
    assert read_graph(write_graph(TEMPLATES[title].graph)) == TEMPLATES[title].graph


@given(interfaces(dtypes=DTYPES))
def test_an_interface_survives_the_wire(interface):
    sent = write_interface(interface).SerializeToString()
    assert read_interface(interface_pb.Interface.FromString(sent)) == interface


def message(**attribute):
    """channel_norm with an attribute `eps`."""
    node = pb.Node(name="a", operator="channel_norm", inputs=["input"], attributes={"eps": pb.Attribute(**attribute)})
    return pb.Graph(version=1, nodes=[node], output="a")


@pytest.mark.parametrize(
    ("wrong", "reason", "path"),
    [
        (message(), "node 'a': attribute 'eps' has no value", "nodes[0].attributes[eps]"),
        (message(integer=1), "attribute 'eps' is 1", "nodes[0].attributes[eps]"),
        (message(text="small"), "attribute 'eps' is 'small'", "nodes[0].attributes[eps]"),
        (message(dimension=pb.Dimension(multiply=5000)), "multiply is 5000", "nodes[0].attributes[eps]"),
        (pb.Graph(version=0, nodes=message(real=0.1).nodes, output="a"), "version is 0", "version"),
        (
            pb.Graph(version=2, nodes=message(real=0.1).nodes, output="a"),
            "version is 2; this operator set is",
            "version",
        ),
        (
            pb.Graph(version=1, nodes=[pb.Node(name="a", operator="fft", inputs=["input"])], output="a"),
            "operator 'fft' is unknown; known: add, attention",
            "nodes[0].operator",
        ),
        (
            pb.Graph(version=1, nodes=[pb.Node(name="a", operator="dropout", inputs=["input"])], output="a"),
            "operator 'dropout' is unknown; a graft is a function",
            "nodes[0].operator",
        ),
        (pb.Graph(version=1, output="a"), "the graph has 0 nodes", "nodes"),
        (
            pb.Graph(version=1, nodes=message(real=0.1).nodes, output="a", parameters=[pb.Parameter(name="w")]),
            "parameter 'w': initialiser 0 is unknown",
            "parameters[0].initialiser",
        ),
    ],
)
def test_what_the_wire_carries_wrongly_is_named_with_its_path(wrong, reason, path):
    with pytest.raises(InvalidBlueprint, match=reason) as caught:
        read_graph(wrong)
    assert list(caught.value.fields) == [path]


def test_zero_in_a_dimension_stands_for_one():
    def graph(size):
        parameter = pb.Parameter(name="w", shape=[size], initialiser=pb.Parameter.INITIALISER_ONES)
        node = pb.Node(name="a", operator="scale", inputs=["input"], parameters=["w"])
        return pb.Graph(version=1, nodes=[node], parameters=[parameter], output="a")

    bare = read_graph(graph(pb.Dimension(of_channels=True)))
    assert bare == read_graph(graph(pb.Dimension(of_channels=True, multiply=1, divide=1, minimum=1)))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (interface_pb.Interface(channels=1, element_type=1), "interface kind is 0"),
        (interface_pb.Interface(kind=9, channels=1, element_type=1), "interface kind is 9"),
        (interface_pb.Interface(kind=1, channels=1), "interface element_type is 0"),
        (interface_pb.Interface(kind=1, element_type=1), "interface channels is 0; it must be 1 to 1048576"),
        (interface_pb.Interface(kind=4, channels=1, element_type=1, causal=True), "interface is causal on map2d"),
    ],
)
def test_a_wrong_interface_is_refused(wrong, reason):
    with pytest.raises(InvalidRequest, match=reason):
        read_interface(wrong)


def test_an_interface_says_what_it_is():
    interface = Interface(Kind.TOKENS, 32, torch.bfloat16, causal=True)
    assert str(interface) == "tokens[32] bfloat16 causal"
    assert interface.channel_dim == -1
    assert interface.example(2, 5).shape == (2, 5, 32)
    assert interface.example(2, 5).dtype is torch.bfloat16
    assert Interface(Kind.MAP2D, 8).channel_dim == 1
    assert Interface(Kind.MAP2D, 8).shape(2, 3, 5) == (2, 8, 3, 5)


def test_an_interface_refuses_what_nothing_can_be_lowered_for():
    with pytest.raises(InvalidRequest, match=r"dtype is torch\.int64; it must be one of float32, bfloat16"):
        Interface(Kind.VECTOR, 8, torch.int64)
    with pytest.raises(InvalidRequest, match="has 2 position dimensions, got 1"):
        Interface(Kind.MAP2D, 8).example(2, 3)
