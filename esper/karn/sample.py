"""Write a new design from nothing: a body of drawn operators, and an ending that is zero at birth."""

import itertools
from dataclasses import dataclass
from random import Random

from esper.blueprint.check import check
from esper.blueprint.interface import Interface
from esper.blueprint.ir import CHANNELS, INPUT, Attribute, Graph, Initialiser, Node
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Extent, Value
from esper.karn.grammar import allowed, draw_attributes, renew, result, starts_of

MOST_OPERATORS = 6
_TRIES = 12


@dataclass(frozen=True, slots=True)
class Offspring:
    """A graph and where it comes from: blueprint ids of its parents, and what was done, in order."""

    graph: Graph
    parents: tuple[str, ...] = ()
    moves: tuple[str, ...] = ()


class Draft:
    """Nodes put down one by one, each typed as it comes; after those of `base` where there is one."""

    def __init__(self, interface: Interface, rng: Random, base: Graph | None = None) -> None:
        self.interface = interface
        self.rng = rng
        self.nodes: list[Node] = list(base.nodes) if base else []
        self.values: dict[str, Value] = dict(check(base).values) if base else {INPUT: Value(CHANNELS)}
        self.starts: dict[str, Initialiser] = starts_of(base) if base else {}
        taken = {*self.values, *(name.partition("_")[0] for name in self.starts)}
        self._fresh = (name for name in (f"n{i}" for i in itertools.count()) if name not in taken)

    def put(
        self, operator: str, inputs: tuple[str, ...], attributes: dict[str, Attribute], zero: bool = False
    ) -> str | None:
        """Name of the new node; None where it is not allowed. `zero`: its parameters start from zeros."""
        row = OPERATORS[operator]
        value = result(row, [self.values[i] for i in inputs], attributes, len(row.roles), self.interface)
        if value is None:
            return None
        name = next(self._fresh)
        parameters = tuple(f"{name}_{role.name}" for role in row.roles)
        for role, parameter in zip(row.roles, parameters, strict=True):
            rank = len(role.shape(tuple(self.values[i] for i in inputs), _filled(operator, attributes)))
            self.starts[parameter] = Initialiser.ZEROS if zero else first_values(role.name, rank)
        self.nodes.append(Node(name, operator, inputs, parameters, tuple(attributes.items())))
        self.values[name] = value
        return name

    def grow(self, last: str) -> str | None:
        """One more operator, drawn, most often on `last`."""
        row = self.rng.choice(allowed(self.interface))
        inputs = [last if self.rng.random() < 0.8 else self.rng.choice(list(self.values))]
        while len(inputs) < row.arity:
            alike = [n for n, v in self.values.items() if v.channels == self.values[inputs[0]].channels]
            inputs.append(self.rng.choice(alike))
        if row.arity == 2 and inputs[0] == inputs[1]:
            return None  # h + h and h h say little that a weight would not
        if any(node.operator == row.name and node.inputs == tuple(inputs) for node in self.nodes):
            return None
        last_operator = next((node.operator for node in self.nodes if node.name == inputs[0]), "")
        if row.name == last_operator and not row.mixes_positions:
            return None  # relu(relu(x)), or two linear layers in a row
        return self.put(row.name, tuple(inputs), draw_attributes(row, self.values[inputs[0]].channels, self.rng))

    def close(self, last: str) -> str | None:
        """An output of the input's shape that is zero at birth."""
        value = self.values[last]
        gate = value.extent is Extent.POOLED or self.rng.random() < 0.2
        if not gate and value.channels == CHANNELS and last != INPUT and self.rng.random() < 0.2:
            return self.put("scale", (last,), {}, zero=True)
        closed = self.put("linear", (last,), {"out": CHANNELS}, zero=True)
        if closed is None or not gate:
            return closed
        bounded = self.put("tanh", (closed,), {})
        return None if bounded is None else self.put("mul", (INPUT, bounded), {})


def first_values(role: str, rank: int) -> Initialiser:
    """How a parameter starts that need not be zero."""
    if rank >= 2:
        return Initialiser.HE_UNIFORM
    return Initialiser.ONES if role == "weight" else Initialiser.ZEROS


def _filled(operator: str, attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {s.name: s.default for s in OPERATORS[operator].settings if s.default is not None} | attributes


def sample(interface: Interface, rng: Random) -> Offspring | None:
    """A design of 1 to 6 drawn operators and its ending; None where the draw came to nothing."""
    draft, last = Draft(interface, rng), INPUT
    wanted = rng.randint(1, MOST_OPERATORS)
    for _ in range(_TRIES):
        if len(draft.nodes) < wanted:
            last = draft.grow(last) or last
    output = draft.close(last)
    if output is None or not draft.nodes:
        return None
    return Offspring(renew(draft.nodes, output, draft.starts), (), (f"drawn: {len(draft.nodes)} operators",))
