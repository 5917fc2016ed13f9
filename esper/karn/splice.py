"""Make one design of two: side by side, or the inside of one in front of the end of the other."""

from dataclasses import replace
from random import Random

from esper.blueprint.check import check
from esper.blueprint.ir import INPUT, Graph, Initialiser, Node
from esper.errors import InvalidBlueprint
from esper.karn.grammar import renew, settled, starts_of


def splice(first: Graph, second: Graph, rng: Random) -> tuple[Graph, str] | None:
    """A well-formed graph and what was done, in words; None where they do not go together."""
    first, other = _apart(first, "a"), _apart(second, "b")
    try:
        return _inside(first, other, rng) if rng.random() < 0.7 else _beside(first, other)
    except InvalidBlueprint:
        return None


def _apart(graph: Graph, prefix: str) -> Graph:
    """The graph under names that no other has."""
    return Graph(
        tuple(
            replace(
                n,
                name=f"{prefix}_{n.name}",
                inputs=tuple(i if i == INPUT else f"{prefix}_{i}" for i in n.inputs),
                parameters=tuple(f"{prefix}_{p}" for p in n.parameters),
            )
            for n in graph.nodes
        ),
        tuple(replace(p, name=f"{prefix}_{p.name}") for p in graph.parameters),
        f"{prefix}_{graph.output}",
        graph.version,
    )


def _beside(first: Graph, other: Graph) -> tuple[Graph, str]:
    """a(h) + b(h): zero at birth, both being it."""
    both, starts = _together(first, other)
    return renew([*both, Node("sum", "add", (first.output, other.output))], "sum", starts), "side by side"


def _inside(first: Graph, other: Graph, rng: Random) -> tuple[Graph, str] | None:
    """A value that `first` computes before its end is replaced by one that `other` computes before its own."""
    mine, theirs = check(first).values, check(other).values
    open_mine = [n.name for n in first.nodes if n.name not in settled(first)]
    open_theirs = [n.name for n in other.nodes if n.name not in settled(other)]
    pairs = [(a, b) for a in open_mine for b in open_theirs if mine[a].extent == theirs[b].extent]
    if not pairs:
        return None
    old, new = rng.choice(pairs)
    both, starts = _together(first, other)
    if mine[old].channels != theirs[new].channels:
        both.append(Node("fit", "linear", (new,), ("fit_weight",), (("out", mine[old].channels),)))
        starts["fit_weight"] = Initialiser.LECUN_UNIFORM
        new = "fit"
    own = {n.name for n in first.nodes}
    nodes = [replace(n, inputs=tuple(new if i == old else i for i in n.inputs)) if n.name in own else n for n in both]
    return renew(nodes, first.output, starts), "inside of the second before the end of the first"


def _together(first: Graph, other: Graph) -> tuple[list[Node], dict[str, Initialiser]]:
    return [*first.nodes, *other.nodes], starts_of(first) | starts_of(other)
