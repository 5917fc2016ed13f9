"""What the library asks of esper.blueprint: a graph's id, and whether it fits an interface."""

from esper.api.common.v1 import blueprint_pb2, interface_pb2
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_graph, read_interface
from esper.blueprint.matching import match


def identify(graph: blueprint_pb2.Graph) -> str:
    """The blueprint id of a graph. Raises InvalidBlueprint, naming node and rule."""
    return blueprint_id(read_graph(graph))


def compatible(graph: blueprint_pb2.Graph, interface: interface_pb2.Interface) -> tuple[bool, str]:
    """Whether a graph can be lowered for an interface, and why (not). Raises InvalidRequest for a bad interface."""
    return match(read_graph(graph), read_interface(interface))
