"""Keep the best design of every sort: an archive of cells, cost by structure (MAP-Elites).

Mouret, Clune 2015, Illuminating search spaces by mapping elites, arXiv:1504.04909.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import Graph
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Positions
from esper.karn.feasible import feasible
from esper.karn.grammar import named

COSTS = 6  # bins of operations per position over channels squared, each four times the one before
_FIRST_COST = 0.25
CHANNELS = 64  # of the interface that designs are compared at
FORMS = ("plain", "gated", "normed", "gated-normed")


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A sort of design. `reach`: how far it looks from a position; `form`: whether it has products and norms."""

    kind: str
    reach: str
    form: str
    cost: int

    @property
    def alias(self) -> str:
        """Its name in the library."""
        return f"karn/{self.kind}/{self.reach}/{self.form}/{self.cost}"


@dataclass(frozen=True, slots=True)
class Elite:
    """The design a cell has. `worth`: relative gain in held-out loss, of its grafts or (not `observed`) expected."""

    blueprint_id: str
    worth: float
    observed: bool
    flops: int  # per position


Archive = Mapping[Cell, Elite]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A design that a cell may have: `graph` under plain names, and where it belongs."""

    graph: Graph
    blueprint_id: str
    cell: Cell
    flops: int  # per position

    def elite(self, observed: float | None, expected: float = 0.0) -> Elite:
        """`observed`: mean gain of its grafts, None: it was not tried, and `expected` stands for it."""
        worth = expected if observed is None else observed
        return Elite(self.blueprint_id, worth, observed is not None, self.flops)


def candidate(graph: Graph, kind: Kind) -> tuple[Candidate | None, str]:
    """(where a design belongs, reason); None for one that nothing could be bred from: whoever made it, it must be
    feasible at an interface of this kind, as what Karn emits is."""
    at = reference(kind)
    fine, reason = feasible(graph, at)
    if not fine:
        return None, f"not feasible at {at}: {reason}"
    graph, flops = named(graph), _flops(graph, kind)
    return Candidate(graph, blueprint_id(graph), cell_of(graph, kind), flops), reason


def reference(kind: Kind) -> Interface:
    """Where all designs of a kind are compared."""
    return Interface(kind, CHANNELS)


def cells(kind: Kind) -> Iterator[Cell]:
    """All that there are for a kind of interface."""
    reaches = [reach.value for reach in Positions] if kind.position_dims else [Positions.NONE.value]
    for reach, form, cost in itertools.product(reaches, FORMS, range(COSTS)):
        yield Cell(kind.value, reach, form, cost)


def cell_of(graph: Graph, kind: Kind) -> Cell:
    """Where a design belongs. Raises InvalidBlueprint where it cannot be lowered for this kind."""
    rows = [OPERATORS[node.operator] for node in graph.nodes]
    seen = {row.positions for row in rows}
    reach = next((p for p in (Positions.GLOBAL, Positions.LOCAL) if p in seen), Positions.NONE)
    gated, normed = any(row.name == "mul" for row in rows), any("norm" in row.name for row in rows)
    share = _flops(graph, kind) / CHANNELS**2
    cost = min(COSTS - 1, max(0, 1 + math.floor(math.log(share / _FIRST_COST, 4)))) if share > 0 else 0
    return Cell(kind.value, reach.value, FORMS[gated + 2 * normed], cost)


def _flops(graph: Graph, kind: Kind) -> int:
    """Per position, at an interface that is the same for all."""
    return infer(graph, reference(kind), 64 if kind.position_dims else 1).forward_flops_per_position


def insert(archive: Archive, cell: Cell, elite: Elite) -> tuple[Archive, bool, str]:
    """(the archive after it, whether the cell has it now, reason).

    More worth wins; at equal worth what was observed, then what is cheaper, then what is there. Another reading
    of the design that is there replaces its worth, unless an expectation would replace an observation.
    """
    there = archive.get(cell)
    if there is None:
        return {**archive, cell: elite}, True, "the cell was empty"
    if there.blueprint_id == elite.blueprint_id:
        if there.observed and not elite.observed:
            return archive, True, "it is there, and was observed"
        return {**archive, cell: elite}, True, f"it is there; worth {elite.worth:+.2%} now"
    if _rank(elite) > _rank(there):
        return {**archive, cell: elite}, True, f"{_said(elite)} beats {_said(there)}"
    return archive, False, f"{_said(there)} stays before {_said(elite)}"


def _rank(elite: Elite) -> tuple[float, bool, int]:
    return (elite.worth, elite.observed, -elite.flops)


def _said(elite: Elite) -> str:
    return f"{elite.blueprint_id[:8]} ({elite.worth:+.2%} {'observed' if elite.observed else 'expected'})"
