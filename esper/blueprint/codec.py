"""Blueprint and interface messages to and from values. A graph is checked here, once."""

import torch

from esper.api.common.v1 import blueprint_pb2 as pb
from esper.api.common.v1 import interface_pb2 as interface_pb
from esper.blueprint.check import check
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import Attribute, Dimension, Graph, Initialiser, Node, Parameter
from esper.errors import InvalidBlueprint, InvalidRequest

_KINDS = {
    interface_pb.TENSOR_KIND_VECTOR: Kind.VECTOR,
    interface_pb.TENSOR_KIND_TOKENS: Kind.TOKENS,
    interface_pb.TENSOR_KIND_MAP1D: Kind.MAP1D,
    interface_pb.TENSOR_KIND_MAP2D: Kind.MAP2D,
}
_DTYPES = {
    interface_pb.ELEMENT_TYPE_FLOAT32: torch.float32,
    interface_pb.ELEMENT_TYPE_BFLOAT16: torch.bfloat16,
    interface_pb.ELEMENT_TYPE_FLOAT16: torch.float16,
    interface_pb.ELEMENT_TYPE_FLOAT64: torch.float64,
}
_INITIALISERS = {
    pb.Parameter.INITIALISER_ZEROS: Initialiser.ZEROS,
    pb.Parameter.INITIALISER_ONES: Initialiser.ONES,
    pb.Parameter.INITIALISER_LECUN_UNIFORM: Initialiser.LECUN_UNIFORM,
    pb.Parameter.INITIALISER_HE_UNIFORM: Initialiser.HE_UNIFORM,
}
_KIND_NUMBERS = {kind: number for number, kind in _KINDS.items()}
_DTYPE_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}
_INITIALISER_NUMBERS = {initialiser: number for number, initialiser in _INITIALISERS.items()}


def read_graph(message: pb.Graph) -> Graph:
    """Raises InvalidBlueprint where the graph is not well formed, naming the node, the value and the rule."""
    graph = Graph(
        nodes=tuple(_read_node(i, node) for i, node in enumerate(message.nodes)),
        parameters=tuple(_read_parameter(i, parameter) for i, parameter in enumerate(message.parameters)),
        output=message.output,
        version=message.version,
    )
    check(graph)
    return graph


def write_graph(graph: Graph) -> pb.Graph:
    return pb.Graph(
        version=graph.version,
        nodes=[_write_node(node) for node in graph.nodes],
        parameters=[_write_parameter(parameter) for parameter in graph.parameters],
        output=graph.output,
    )


def read_interface(message: interface_pb.Interface) -> Interface:
    """Raises InvalidRequest for a kind, element type or channel count that is missing or out of bounds."""
    if message.kind not in _KINDS:
        raise InvalidRequest(f"interface kind is {message.kind}; it must be one of {sorted(_KINDS)}")
    if message.element_type not in _DTYPES:
        raise InvalidRequest(f"interface element_type is {message.element_type}; it must be one of {sorted(_DTYPES)}")
    return Interface(_KINDS[message.kind], message.channels, _DTYPES[message.element_type], message.causal)


def write_interface(interface: Interface) -> interface_pb.Interface:
    return interface_pb.Interface(
        kind=_KIND_NUMBERS[interface.kind],
        channels=interface.channels,
        element_type=_DTYPE_NUMBERS[interface.dtype],
        causal=interface.causal,
    )


def _read_node(index: int, message: pb.Node) -> Node:
    return Node(
        name=message.name,
        operator=message.operator,
        inputs=tuple(message.inputs),
        parameters=tuple(message.parameters),
        attributes=tuple((name, _read_attribute(index, message, name)) for name in sorted(message.attributes)),
    )


def _read_attribute(index: int, node: pb.Node, name: str) -> Attribute:
    message = node.attributes[name]
    which = message.WhichOneof("value")
    where = f"nodes[{index}].attributes[{name}]"
    if which is None:
        reason = f"node {node.name!r}: attribute {name!r} has no value"
        raise InvalidBlueprint(reason, {where: reason})
    if which == "dimension":
        return _read_dimension(where, message.dimension)
    value: int | float | str = getattr(message, which)
    return value


def _read_dimension(where: str, message: pb.Dimension) -> Dimension:
    try:
        return Dimension(message.of_channels, message.multiply, message.divide, message.minimum)
    except InvalidBlueprint as error:
        raise InvalidBlueprint(f"{where}: {error}", {where: str(error)}) from error


def _read_parameter(index: int, message: pb.Parameter) -> Parameter:
    if message.initialiser not in _INITIALISERS:
        reason = f"parameter {message.name!r}: initialiser {message.initialiser} is unknown"
        raise InvalidBlueprint(reason, {f"parameters[{index}].initialiser": reason})
    shape = tuple(_read_dimension(f"parameters[{index}].shape[{i}]", size) for i, size in enumerate(message.shape))
    return Parameter(message.name, shape, _INITIALISERS[message.initialiser])


def _write_node(node: Node) -> pb.Node:
    return pb.Node(
        name=node.name,
        operator=node.operator,
        inputs=node.inputs,
        parameters=node.parameters,
        attributes={name: _write_attribute(value) for name, value in node.attributes},
    )


def _write_attribute(value: Attribute) -> pb.Attribute:
    if isinstance(value, Dimension):
        return pb.Attribute(dimension=_write_dimension(value))
    if isinstance(value, str):
        return pb.Attribute(text=value)
    return pb.Attribute(real=value) if isinstance(value, float) else pb.Attribute(integer=value)


def _write_dimension(size: Dimension) -> pb.Dimension:
    return pb.Dimension(of_channels=size.of_channels, multiply=size.multiply, divide=size.divide, minimum=size.minimum)


def _write_parameter(parameter: Parameter) -> pb.Parameter:
    return pb.Parameter(
        name=parameter.name,
        shape=[_write_dimension(size) for size in parameter.shape],
        initialiser=_INITIALISER_NUMBERS[parameter.initialiser],
    )
