"""The canonical form of a graph, its order of evaluation and its identity.

docs/blueprint-ir.md specifies it. Names and the order of lists do not enter, nor the
order of arguments of add and mul; parameters have identity (sharing one is not having
two equal ones), nodes have none (equal expressions are one value).
"""

import functools
import hashlib
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from esper.blueprint.check import check
from esper.blueprint.ir import INPUT, VERSION, Attribute, Dimension, Graph, Node, Parameter
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Value
from esper.errors import InvalidBlueprint

MAX_SYMMETRIES = 64


@dataclass(frozen=True, slots=True)
class Step:
    """One value to compute. `inputs`: 0 is the graft's input, i the i-th step counted from 1."""

    node: Node
    attributes: Mapping[str, Attribute]  # defaults filled in
    inputs: tuple[int, ...]
    parameters: tuple[int, ...]  # places in Canonical.parameters
    value: Value


@dataclass(frozen=True, slots=True)
class Canonical:
    """A graph in canonical order: what lowering, cost and source are made from."""

    steps: tuple[Step, ...]  # the last one is the output
    parameters: tuple[Parameter, ...]
    text: bytes


def blueprint_id(graph: Graph) -> str:
    """sha256 of the canonical bytes, 64 hexadecimal digits. Raises InvalidBlueprint."""
    return hashlib.sha256(canonical(graph).text).hexdigest()


@functools.lru_cache(maxsize=512)
def canonical(graph: Graph) -> Canonical:
    """Put `graph` in canonical order. Raises InvalidBlueprint where it is not well formed."""
    expressions = _expressions(graph)
    colours = _coloured(expressions, {p.name: p for p in graph.parameters})
    order = _depth_first(expressions, colours)
    return _numbered(graph, expressions, colours, order)


class _Expression(NamedTuple):
    """A node with its inputs replaced by the expressions' indexes; index 0 is the graft's input."""

    node: Node
    commutative: bool
    inputs: tuple[int, ...]
    settings: str  # "kernel=3,out=8"


def _expressions(graph: Graph) -> list[_Expression]:
    """Each distinct expression once, inputs before users; the output is the last."""
    checked = check(graph)
    index, seen, found = {INPUT: 0}, {}, []
    for node in checked.order:
        inputs = tuple(index[name] for name in node.inputs)
        commutative = OPERATORS[node.operator].commutative
        if commutative:
            inputs = tuple(sorted(inputs))
        settings = _settings(node.operator, checked.attributes[node.name])
        key = (node.operator, inputs, node.parameters, settings)
        if key not in seen:
            found.append(_Expression(node, commutative, inputs, settings))
            seen[key] = len(found)
        index[node.name] = seen[key]
    return found


def _settings(operator: str, attributes: Mapping[str, Attribute]) -> str:
    silent = {(s.name, s.default) for s in OPERATORS[operator].settings if s.implied}
    written = ((name, value) for name, value in sorted(attributes.items()) if (name, value) not in silent)
    return ",".join(f"{name}={_attribute(value)}" for name, value in written)


def _attribute(value: Attribute) -> str:
    if isinstance(value, Dimension):
        return _size(value)
    return struct.pack(">d", value).hex() if isinstance(value, float) else str(value)


def _size(size: Dimension) -> str:
    if not size.of_channels:
        return str(size.minimum)
    return f"max({size.minimum},c*{size.multiply}/{size.divide})"


# Colours: digests that tell apart whatever the graph's structure tells apart.


class _Colours(NamedTuple):
    parameters: dict[str, str]
    values: list[str]  # by expression index, 0 the graft's input


def _coloured(expressions: list[_Expression], parameters: Mapping[str, Parameter]) -> _Colours:
    """Colours in which no two parameters are alike, the same for every way of writing the graph."""
    colours = {name: _digest("parameter", _declaration(p)) for name, p in parameters.items()}
    for _ in range(MAX_SYMMETRIES + 1):
        colours = _refined(expressions, colours)
        alike = [colour for colour, members in Counter(colours.values()).items() if members > 1]
        if not alike:
            return _Colours(colours, _value_colours(expressions, colours))
        # parameters that only a symmetry exchanges: mark one of the first class, and refine again
        first = min(alike)
        chosen = next(name for name in _first_uses(expressions) if colours[name] == first)
        colours[chosen] = _digest("marked", first)
    raise InvalidBlueprint(
        f"more than {MAX_SYMMETRIES} parameters can change places without changing the graph; use fewer equal branches"
    )


def _refined(expressions: list[_Expression], colours: dict[str, str]) -> dict[str, str]:
    """Colour parameters by where they are used, until no class splits any more."""
    while True:
        uses = _uses(expressions, colours)
        finer = {name: _digest(colour, *sorted(uses[name])) for name, colour in colours.items()}
        if len(set(finer.values())) == len(set(colours.values())):
            return colours
        colours = finer


def _value_colours(expressions: list[_Expression], colours: Mapping[str, str]) -> list[str]:
    values = [_digest("input")]
    for expression in expressions:
        inputs = [values[i] for i in expression.inputs]
        inputs = sorted(inputs) if expression.commutative else inputs
        parameters = [colours[name] for name in expression.node.parameters]
        values.append(_digest(expression.node.operator, expression.settings, ",".join(inputs), ",".join(parameters)))
    return values


def _uses(expressions: list[_Expression], colours: Mapping[str, str]) -> dict[str, list[str]]:
    """For every parameter, one digest per place that uses it: the place's value, its role, and what becomes of it."""
    values = _value_colours(expressions, colours)
    pending: defaultdict[int, list[str]] = defaultdict(list, {len(expressions): ["output"]})
    found: defaultdict[str, list[str]] = defaultdict(list)
    for index in range(len(expressions), 0, -1):
        expression = expressions[index - 1]
        place = _digest("place", values[index], *sorted(pending[index]))
        for position, source in enumerate(expression.inputs):
            pending[source].append(_digest(place, "any" if expression.commutative else str(position)))
        for position, name in enumerate(expression.node.parameters):
            found[name].append(_digest(place, str(position)))
    return found


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# Order and text.


def _first_uses(expressions: Iterable[_Expression]) -> dict[str, None]:
    return dict.fromkeys(name for expression in expressions for name in expression.node.parameters)


def _arguments(expression: _Expression, colours: _Colours) -> tuple[int, ...]:
    if not expression.commutative:
        return expression.inputs
    return tuple(sorted(expression.inputs, key=lambda i: colours.values[i]))


def _depth_first(expressions: list[_Expression], colours: _Colours) -> list[int]:
    """Expression indexes in the order a depth-first walk from the output leaves them."""
    order: dict[int, None] = {}
    entered, stack = {0}, [(len(expressions), False)]
    while stack:
        index, leaving = stack.pop()
        if leaving:
            order[index] = None
        elif index not in entered:
            entered.add(index)
            stack.append((index, True))
            stack.extend((i, False) for i in reversed(_arguments(expressions[index - 1], colours)))
    return list(order)


def _numbered(graph: Graph, expressions: list[_Expression], colours: _Colours, order: list[int]) -> Canonical:
    checked = check(graph)
    number = {0: 0} | {index: place for place, index in enumerate(order, start=1)}
    declared = {p.name: p for p in graph.parameters}
    place = {name: i for i, name in enumerate(_first_uses(expressions[i - 1] for i in order))}
    steps, lines = [], [f"esper blueprint {VERSION}"]
    lines += [f"p{i} = {_declaration(declared[name])}" for name, i in place.items()]
    for index in order:
        expression = expressions[index - 1]
        node = expression.node
        inputs = tuple(number[i] for i in _arguments(expression, colours))
        parameters = tuple(place[name] for name in node.parameters)
        steps.append(Step(node, checked.attributes[node.name], inputs, parameters, checked.values[node.name]))
        arguments = [",".join(f"v{i}" for i in inputs), ",".join(f"p{i}" for i in parameters), expression.settings]
        lines.append(f"v{number[index]} = {node.operator}({';'.join(arguments)})")
    return Canonical(tuple(steps), tuple(declared[name] for name in place), "".join(f"{x}\n" for x in lines).encode())


def _declaration(parameter: Parameter) -> str:
    return f"{parameter.initialiser.value}[{','.join(map(_size, parameter.shape))}]"
