"""Decide whether a graph is well formed, and type every value in it.

Shapes are compared as Dimensions, so a graph that passes is consistent for every
channel count at once; what depends on the interface (positions, causality, heads
dividing channels) is matching.py's matter.
"""

import functools
import graphlib
import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from torch import nn

from esper.blueprint.ir import CHANNELS, INPUT, VERSION, Attribute, Dimension, Graph, Initialiser, Node, Parameter
from esper.blueprint.operators import OPERATORS, REFUSED
from esper.blueprint.signature import Extent, Operator, Value
from esper.errors import InvalidBlueprint

MAX_NODES = 1024
MAX_PARAMETERS = 1024
MAX_RANK = 8
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
# a parameter is an attribute of the module it becomes, so it cannot take one of the module's own names
_MODULE_NAMES = frozenset({*dir(nn.Module), *vars(nn.Module()), "functional", "graph", "interface", "parameter_names"})

_Named = TypeVar("_Named", Node, Parameter)


@dataclass(frozen=True, slots=True)
class Checked:
    """A well-formed graph's nodes, inputs before users, with defaults filled in and every value typed."""

    order: tuple[Node, ...]
    attributes: Mapping[str, Mapping[str, Attribute]]  # by node
    values: Mapping[str, Value]  # by node, the input among them


@functools.lru_cache(maxsize=512)
def check(graph: Graph) -> Checked:
    """Type `graph`. Raises InvalidBlueprint naming the node or parameter, the value and the rule."""
    if graph.version != VERSION:
        _refuse("version", f"version is {graph.version}; this operator set is version {VERSION}")
    if not 1 <= len(graph.nodes) <= MAX_NODES:
        _refuse("nodes", f"the graph has {len(graph.nodes)} nodes; it must have 1 to {MAX_NODES}")
    if len(graph.parameters) > MAX_PARAMETERS:
        _refuse("parameters", f"the graph has {len(graph.parameters)} parameters; at most {MAX_PARAMETERS}")
    parameters = _by_name("parameters", graph.parameters)
    nodes = _by_name("nodes", graph.nodes)
    for i, parameter in enumerate(graph.parameters):
        _check_parameter(f"parameters[{i}]", parameter)
    for i, node in enumerate(graph.nodes):
        _check_node(f"nodes[{i}]", node, nodes, parameters)
    order = _ordered(graph, nodes)
    _check_reached(graph, nodes)
    return _typed(graph, order, parameters)


def _refuse(path: str, message: str) -> NoReturn:
    raise InvalidBlueprint(message, {path: message})


def _by_name(path: str, things: Iterable[_Named]) -> dict[str, _Named]:
    found: dict[str, _Named] = {}
    for i, thing in enumerate(things):
        what = f"{path.removesuffix('s')} {thing.name!r}"
        if not _NAME.fullmatch(thing.name):
            _refuse(f"{path}[{i}].name", f"{what}: a name must match {_NAME.pattern}")
        if thing.name == INPUT:
            _refuse(f"{path}[{i}].name", f"{what}: the name is the graft's input's")
        if thing.name in found:
            _refuse(f"{path}[{i}].name", f"{what}: the name is used twice")
        found[thing.name] = thing
    return found


def _check_parameter(path: str, parameter: Parameter) -> None:
    what = f"parameter {parameter.name!r}"
    if parameter.name in _MODULE_NAMES or keyword.iskeyword(parameter.name):
        _refuse(f"{path}.name", f"{what}: the name belongs to torch.nn.Module or to Python; choose another")
    if not 1 <= len(parameter.shape) <= MAX_RANK:
        _refuse(f"{path}.shape", f"{what}: {len(parameter.shape)} dimensions; it must have 1 to {MAX_RANK}")
    if not isinstance(parameter.initialiser, Initialiser):
        _refuse(f"{path}.initialiser", f"{what}: initialiser {parameter.initialiser!r} is unknown")


def _check_node(path: str, node: Node, nodes: Mapping[str, Node], parameters: Mapping[str, Parameter]) -> None:
    what = f"node {node.name!r}"
    operator = OPERATORS.get(node.operator)
    if operator is None:
        why = REFUSED.get(node.operator) or f"known: {', '.join(OPERATORS)}"
        _refuse(f"{path}.operator", f"{what}: operator {node.operator!r} is unknown; {why}")
    if len(node.inputs) != operator.arity:
        _refuse(f"{path}.inputs", f"{what}: {node.operator} takes {operator.arity} inputs, got {len(node.inputs)}")
    for name in node.inputs:
        if name != INPUT and name not in nodes:
            _refuse(f"{path}.inputs", f"{what}: input {name!r} is no node of the graph")
    low, high = operator.required_parameters, len(operator.roles)
    if not low <= len(node.parameters) <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        _refuse(f"{path}.parameters", f"{what}: {node.operator} takes {wanted} parameters, got {len(node.parameters)}")
    for name in node.parameters:
        if name not in parameters:
            _refuse(f"{path}.parameters", f"{what}: parameter {name!r} is not declared")
    _check_attributes(path, node, operator)


def _check_attributes(path: str, node: Node, operator: Operator) -> None:
    settings = {setting.name: setting for setting in operator.settings}
    given = dict(node.attributes)
    if len(given) != len(node.attributes):
        _refuse(f"{path}.attributes", f"node {node.name!r}: an attribute is given twice")
    for name, value in node.attributes:
        where = f"node {node.name!r}: attribute {name!r}"
        if name not in settings:
            known = ", ".join(settings) or "none"
            _refuse(f"{path}.attributes[{name}]", f"{where} is unknown to {node.operator}; it has {known}")
        if not settings[name].allows(value):
            shown = str(value) if isinstance(value, Dimension) else repr(value)
            _refuse(f"{path}.attributes[{name}]", f"{where} is {shown}; it must be {settings[name].rule}")
    for name, setting in settings.items():
        if name not in given and setting.default is None:
            _refuse(f"{path}.attributes[{name}]", f"node {node.name!r}: {node.operator} needs attribute {name!r}")


def _ordered(graph: Graph, nodes: Mapping[str, Node]) -> tuple[Node, ...]:
    """Nodes with inputs before users; nodes that could come in any order stay in the graph's."""
    sorter = graphlib.TopologicalSorter({node.name: node.inputs for node in graph.nodes})
    try:
        names = tuple(sorter.static_order())
    except graphlib.CycleError as error:
        _refuse("nodes", f"node {error.args[1][0]!r} depends on itself: {' <- '.join(error.args[1])}")
    return tuple(nodes[name] for name in names if name != INPUT)


def _check_reached(graph: Graph, nodes: Mapping[str, Node]) -> None:
    if graph.output not in nodes:
        _refuse("output", f"output {graph.output!r} is no node of the graph")
    reached, parameters, waiting = {INPUT}, set[str](), [graph.output]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(nodes[name].inputs)
            parameters.update(nodes[name].parameters)
    for i, node in enumerate(graph.nodes):
        if node.name not in reached:
            _refuse(f"nodes[{i}]", f"node {node.name!r} is not used: output {graph.output!r} does not depend on it")
    for i, parameter in enumerate(graph.parameters):
        if parameter.name not in parameters:
            _refuse(f"parameters[{i}]", f"parameter {parameter.name!r} is not used by any node")


def _typed(graph: Graph, order: tuple[Node, ...], parameters: Mapping[str, Parameter]) -> Checked:
    values, attributes = {INPUT: Value(CHANNELS)}, {}
    for node in order:
        operator = OPERATORS[node.operator]
        defaults = {s.name: s.default for s in operator.settings if s.default is not None}
        attributes[node.name] = defaults | dict(node.attributes)
        inputs = tuple(values[name] for name in node.inputs)
        try:
            values[node.name] = operator.result(inputs, attributes[node.name])
        except InvalidBlueprint as error:
            _refuse("nodes", f"node {node.name!r}: {node.operator}: {error}")
        for role, name in zip(operator.roles, node.parameters, strict=False):
            wanted, seen = role.shape(inputs, attributes[node.name]), parameters[name].shape
            if wanted != seen:
                _refuse(
                    "parameters",
                    f"node {node.name!r}: {role.name} {name!r} is {shape_text(seen)}; "
                    f"{node.operator} needs {shape_text(wanted)}",
                )
    _check_output(graph.output, values[graph.output])
    return Checked(order, attributes, values)


def _check_output(name: str, value: Value) -> None:
    if value.channels != CHANNELS:
        _refuse("output", f"output {name!r} has {value.channels} channels; it must have the input's, {CHANNELS}")
    if value.extent is not Extent.FULL:
        _refuse("output", f"output {name!r} is pooled to one position; it must have the input's positions")


def shape_text(shape: Iterable[Dimension]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
