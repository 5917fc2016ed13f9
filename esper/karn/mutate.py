"""Change a design by one move. A move that cannot be made gives None; what it gives is well formed, no more.

Nothing is put behind the operator that makes the branch zero at birth: there it would see zeros only.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.check import check
from esper.blueprint.interface import Interface
from esper.blueprint.ir import CHANNELS, Attribute, Dimension, Graph, Node
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Operator, Value
from esper.errors import InvalidBlueprint
from esper.karn.grammar import SIZES, allowed, draw_attributes, renew, result, settled, starts_of
from esper.karn.sample import Draft

Changed = tuple[Graph, str] | None
Move = Callable[[Graph, Interface, Random], Changed]


def mutate(graph: Graph, interface: Interface, rng: Random, moves: tuple[str, ...] = ()) -> Changed:
    """`graph` after one drawn move and what it was, in words; of `moves` where there are any."""
    move = rng.choice(moves or tuple(MOVES))
    try:
        made = MOVES[move](graph, interface, rng)
    except InvalidBlueprint:  # the change does not fit what comes after it
        return None
    # a width that had to follow its input's is what it was
    return made if made is not None and blueprint_id(made[0]) != blueprint_id(graph) else None


def _edges(graph: Graph) -> list[tuple[str, int]]:
    """(user, place) of every input that is not yet settled; what feeds the zero operator is one."""
    fixed = settled(graph)
    return [(n.name, i) for n in graph.nodes for i, source in enumerate(n.inputs) if source not in fixed]


def _insert(
    graph: Graph, interface: Interface, rng: Random, write: Callable[[Draft, str, Value], str | None]
) -> Graph | None:
    """`graph` with what `write` puts on an edge; its value has the width and extent of the edge's."""
    edges = _edges(graph)
    if not edges:
        return None
    user, place = rng.choice(edges)
    source = next(n for n in graph.nodes if n.name == user).inputs[place]
    draft = Draft(interface, rng, graph)
    made = write(draft, source, draft.values[source])
    if made is None or draft.values[made] != draft.values[source]:
        return None
    nodes = [_with_input(n, place, made) if n.name == user else n for n in draft.nodes]
    return renew(nodes, graph.output, draft.starts)


def _with_input(node: Node, place: int, name: str) -> Node:
    return replace(node, inputs=(*node.inputs[:place], name, *node.inputs[place + 1 :]))


def _add(graph: Graph, interface: Interface, rng: Random) -> Changed:
    row = rng.choice([r for r in allowed(interface) if "norm" not in r.name])

    def write(draft: Draft, source: str, value: Value) -> str | None:
        attributes = draw_attributes(row, value.channels, rng)
        attributes |= {s.name: value.channels for s in row.settings if s.type is Dimension}
        return draft.put(row.name, (source,) * row.arity, attributes)

    if row.arity == 2:
        return None  # a sum or product with itself; gates are a move of their own
    made = _insert(graph, interface, rng, write)
    return (made, f"add {row.name}") if made else None


def _remove(graph: Graph, _interface: Interface, rng: Random) -> Changed:
    values, fixed = check(graph).values, settled(graph)
    idle = [
        (n, i)
        for n in graph.nodes
        for i, source in enumerate(n.inputs)
        if n.name not in fixed and n.name != graph.output and values[n.name] == values[source]
    ]
    if not idle:
        return None
    node, place = rng.choice(idle)
    others = [
        replace(n, inputs=tuple(node.inputs[place] if i == node.name else i for i in n.inputs))
        for n in graph.nodes
        if n is not node
    ]
    return renew(others, graph.output, starts_of(graph)), f"remove {node.operator}"


def _substitute(graph: Graph, interface: Interface, rng: Random) -> Changed:
    """Another operator of the same arity that takes no parameters, in the place of one that takes none."""
    plain = [n for n in graph.nodes if not n.parameters and n.name not in settled(graph)]
    if not plain:
        return None
    node = rng.choice(plain)
    values = check(graph).values
    inputs = [values[i] for i in node.inputs]
    for row in rng.sample(rows := _plain(interface, len(node.inputs)), len(rows)):
        attributes = draw_attributes(row, inputs[0].channels, rng)
        if row.name != node.operator and result(row, inputs, attributes, 0, interface) == values[node.name]:
            other = replace(node, operator=row.name, attributes=tuple(attributes.items()))
            nodes = [other if n is node else n for n in graph.nodes]
            return renew(nodes, graph.output, starts_of(graph)), f"{row.name} for {node.operator}"
    return None


def _plain(interface: Interface, arity: int) -> list[Operator]:
    return [row for row in allowed(interface) if not row.roles and row.arity == arity]


def _set(
    graph: Graph, rng: Random, wanted: Callable[[str, Attribute], bool], choices: Callable[[Node, str], list[Attribute]]
) -> Changed:
    """Another value for one attribute."""
    places = [(n, name) for n in graph.nodes for name, value in n.attributes if wanted(name, value)]
    if not places:
        return None
    node, name = rng.choice(places)
    before = dict(node.attributes)[name]
    others = [value for value in choices(node, name) if value != before]
    if not others:
        return None
    value = rng.choice(others)
    other = replace(node, attributes=tuple((dict(node.attributes) | {name: value}).items()))
    nodes = [other if n is node else n for n in graph.nodes]
    return renew(nodes, graph.output, starts_of(graph)), f"{name} of {node.operator} {before} to {value}"


def _is_width(_name: str, value: Attribute) -> bool:
    return isinstance(value, Dimension)


def _widen(graph: Graph, _interface: Interface, rng: Random) -> Changed:
    return _set(graph, rng, _is_width, lambda node, name: _beyond(dict(node.attributes)[name], 1))


def _rank(graph: Graph, _interface: Interface, rng: Random) -> Changed:
    """A narrower hidden width: the rank of the product of the two matrices around it."""
    return _set(graph, rng, _is_width, lambda node, name: _beyond(dict(node.attributes)[name], -1))


def _beyond(size: Attribute, direction: int) -> list[Attribute]:
    """Widths that are larger (1) or smaller (-1) where there are a few hundred channels."""
    assert isinstance(size, Dimension)
    return [other for other in SIZES if direction * (other.resolve(512) - size.resolve(512)) > 0]


def _setting(name: str) -> Move:
    def move(graph: Graph, _interface: Interface, rng: Random) -> Changed:
        return _set(graph, rng, lambda key, _value: key == name, lambda node, key: _drawn(node, key, rng))

    return move


def _other(graph: Graph, _interface: Interface, rng: Random) -> Changed:
    """Any setting that is no width."""
    return _set(graph, rng, lambda _n, v: not isinstance(v, Dimension), lambda node, key: _drawn(node, key, rng))


def _drawn(node: Node, key: str, rng: Random) -> list[Attribute]:
    return [draw_attributes(OPERATORS[node.operator], CHANNELS, rng)[key] for _ in range(4)]


def _gate(graph: Graph, interface: Interface, rng: Random) -> Changed:
    """v becomes v times a squashed linear function of v (Dauphin et al. 2017, arXiv:1612.08083)."""

    def write(draft: Draft, source: str, value: Value) -> str | None:
        inside = draft.put("linear", (source,), {"out": value.channels})
        squashed = inside and draft.put("sigmoid", (inside,), {})
        return squashed and draft.put("mul", (source, squashed), {})

    made = _insert(graph, interface, rng, write)
    return (made, "insert gate") if made else None


def _norm(graph: Graph, interface: Interface, rng: Random) -> Changed:
    row = rng.choice([r for r in allowed(interface) if "norm" in r.name and r.arity == 1])

    def write(draft: Draft, source: str, value: Value) -> str | None:
        return draft.put(row.name, (source,), draw_attributes(row, value.channels, rng))

    made = _insert(graph, interface, rng, write)
    return (made, f"insert {row.name}") if made else None


MOVES: dict[str, Move] = {
    "add": _add,
    "remove": _remove,
    "substitute": _substitute,
    "widen": _widen,
    "rank": _rank,
    "heads": _setting("heads"),
    "kernel": _setting("kernel"),
    "setting": _other,
    "gate": _gate,
    "norm": _norm,
}
