"""A graph as JSON and back: the canonical JSON of its message `esper.api.common.v1.Graph`."""

from google.protobuf import json_format

from esper.api.common.v1 import blueprint_pb2 as pb
from esper.blueprint.codec import read_graph, write_graph
from esper.blueprint.ir import Graph
from esper.errors import InvalidBlueprint

MAX_TEXT = 1 << 22  # characters


def write_json(graph: Graph) -> str:
    """Two spaces of indentation, keys sorted, a line feed at the end."""
    return json_format.MessageToJson(write_graph(graph), indent=2, sort_keys=True) + "\n"


def read_json(text: str) -> Graph:
    """Raises InvalidBlueprint for text that is no such message, and as `read_graph`."""
    if len(text) > MAX_TEXT:
        raise InvalidBlueprint(f"the text has {len(text)} characters; at most {MAX_TEXT}")
    try:
        message = json_format.Parse(text, pb.Graph(), max_recursion_depth=16)
    except (json_format.ParseError, RecursionError) as error:
        raise InvalidBlueprint(f"it is no JSON of a blueprint: {error}") from None
    return read_graph(message)
