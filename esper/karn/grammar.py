"""What may be written for an interface: operators, attributes and sizes; and graphs whose parameters are put right.

The operator table is read as it is, so that a new row is drawn and mutated without a word here.
A graph under construction is its nodes and, for each parameter's name, how it starts; the shapes follow from both.
"""

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random

from esper.blueprint.canonical import canonical
from esper.blueprint.check import check
from esper.blueprint.interface import Interface
from esper.blueprint.ir import (
    CHANNELS,
    INPUT,
    ONE,
    Attribute,
    Dimension,
    Graph,
    Initialiser,
    Node,
    Parameter,
    of_channels,
)
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Binding, Operator, Value
from esper.errors import InvalidBlueprint

# widths, narrowest first
SIZES = (
    ONE,
    of_channels(divide=8, minimum=4),
    of_channels(divide=4, minimum=4),
    of_channels(divide=2, minimum=4),
    CHANNELS,
    of_channels(multiply=2),
    of_channels(multiply=4),
)
_WHOLE = (1, 2, 3, 4, 5, 7, 8, 9, 16)


def allowed(interface: Interface) -> list[Operator]:
    """Operators that have a meaning there, by name."""
    return [
        row for row in OPERATORS.values() if interface.kind in row.kinds and (row.can_be_causal or not interface.causal)
    ]


def draw_attributes(row: Operator, channels: Dimension, rng: Random) -> dict[str, Attribute]:
    """A value for every setting of `row`, within its bounds; `channels` are the first input's."""
    drawn: dict[str, Attribute] = {}
    for setting in row.settings:
        choices: list[Attribute]
        if setting.implied and setting.default is not None and rng.random() < 0.5:
            choices = [setting.default]
        elif setting.type is Dimension:
            choices = [*SIZES, channels, channels, channels]
        elif setting.type is str:
            choices = list(setting.words)
        elif setting.type is int:
            choices = [n for n in _WHOLE if setting.allows(n)] or [int(setting.low)]
        else:
            choices = [setting.low if setting.default is None else setting.default]
        drawn[setting.name] = rng.choice(choices)
    return drawn


def result(
    row: Operator, inputs: Sequence[Value], attributes: Mapping[str, Attribute], parameters: int, interface: Interface
) -> Value | None:
    """The type of a node's value at the interface; None where the rules of the operator forbid it."""
    filled = {s.name: s.default for s in row.settings if s.default is not None} | dict(attributes)
    try:
        value = row.result(tuple(inputs), filled)
    except InvalidBlueprint:
        return None
    at = interface.channels
    binding = Binding(
        kind=interface.kind,
        causal=interface.causal,
        inputs=tuple((one.channels.resolve(at), one.extent) for one in inputs),
        channels=value.channels.resolve(at),
        extent=value.extent,
        parameter_count=parameters,
        attributes={k: v.resolve(at) if isinstance(v, Dimension) else v for k, v in filled.items()},
        parameter_sizes=tuple(
            tuple(size.resolve(at) for size in role.shape(tuple(inputs), filled)) for role in row.roles
        ),
    )
    return None if row.fits(binding) else value


def renew(nodes: Iterable[Node], output: str, starts: Mapping[str, Initialiser]) -> Graph:
    """A well-formed graph of those `nodes` that `output` needs, every parameter in the shape its users ask for.

    A width that must follow its input's (a depthwise convolution's) follows it; a parameter whose users
    want different shapes is one for each. `starts`: how each parameter begins. Raises InvalidBlueprint.
    """
    by_name = {node.name: node for node in nodes}
    values, declared, written = {INPUT: Value(CHANNELS)}, dict[str, Parameter](), list[Node]()
    for name in _needed(by_name, output):
        node = _following(by_name[name], values, is_output=name == output)
        row = OPERATORS[node.operator]
        filled = {s.name: s.default for s in row.settings if s.default is not None} | dict(node.attributes)
        inputs = tuple(values[i] for i in node.inputs)
        values[name] = row.result(inputs, filled)
        names = []
        for role, parameter in zip(row.roles, node.parameters, strict=False):
            made = Parameter(parameter, role.shape(inputs, filled), starts[parameter])
            if declared.get(parameter, made) != made:
                made = replace(made, name=f"{name}_{role.name}")
            declared[made.name] = made
            names.append(made.name)
        written.append(replace(node, parameters=tuple(names)))
    graph = Graph(tuple(written), tuple(declared.values()), output)
    check(graph)
    return graph


def _needed(by_name: Mapping[str, Node], output: str) -> list[str]:
    """What `output` depends on, inputs before users. Raises InvalidBlueprint for a cycle."""
    found, waiting = set[str](), [output]
    while waiting:
        name = waiting.pop()
        if name != INPUT and name not in found:
            found.add(name)
            waiting.extend(by_name[name].inputs)
    sorter = graphlib.TopologicalSorter({n.name: n.inputs for n in by_name.values() if n.name in found})
    try:
        return [name for name in sorter.static_order() if name != INPUT]
    except graphlib.CycleError as error:
        raise InvalidBlueprint(f"node {error.args[1][0]!r} depends on itself") from None


def _following(node: Node, values: Mapping[str, Value], *, is_output: bool) -> Node:
    """The node, its widths set to its input's where the operator takes no others."""
    row = OPERATORS[node.operator]
    inputs = tuple(values[i] for i in node.inputs)
    filled = {s.name: s.default for s in row.settings if s.default is not None} | dict(node.attributes)
    try:
        row.result(inputs, filled)
        return node
    except InvalidBlueprint:
        if is_output or not any(isinstance(v, Dimension) for _, v in node.attributes):
            raise
    channels = inputs[0].channels
    return replace(node, attributes=tuple((k, channels if isinstance(v, Dimension) else v) for k, v in node.attributes))


def starts_of(graph: Graph) -> dict[str, Initialiser]:
    return {parameter.name: parameter.initialiser for parameter in graph.parameters}


def settled(graph: Graph) -> frozenset[str]:
    """Nodes that are zero at birth as far as their weights say, and all that comes after them: nothing is put there."""
    starts, found = starts_of(graph), set[str]()
    for node in check(graph).order:
        row = OPERATORS[node.operator]
        weights = [p for r, p in zip(row.roles, node.parameters, strict=False) if r.name.endswith("weight")]
        if any(starts[weight] is Initialiser.ZEROS for weight in weights) or found & set(node.inputs):
            found.add(node.name)
    return frozenset(found)


def named(graph: Graph) -> Graph:
    """The same graph in canonical order under plain names: linear1, linear1_weight."""
    form = canonical(graph)
    names, counts = [INPUT], dict[str, int]()
    for step in form.steps:
        counts[step.node.operator] = counts.get(step.node.operator, 0) + 1
        names.append(f"{step.node.operator}{counts[step.node.operator]}")
    parameters: dict[int, Parameter] = {}
    nodes = []
    for own, step in zip(names[1:], form.steps, strict=True):
        for role, place in zip(OPERATORS[step.node.operator].roles, step.parameters, strict=False):
            parameters.setdefault(place, replace(form.parameters[place], name=f"{own}_{role.name}"))
        used = tuple(parameters[place].name for place in step.parameters)
        nodes.append(Node(own, step.node.operator, tuple(names[i] for i in step.inputs), used, step.node.attributes))
    return Graph(tuple(nodes), tuple(parameters.values()), names[-1], graph.version)
