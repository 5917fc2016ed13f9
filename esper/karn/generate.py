"""Make designs for an opportunity: draw, mutate and splice, and keep what is feasible, new and to the point."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from random import Random

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.infer import Inference, infer
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.blueprint.matching import match
from esper.errors import InvalidBlueprint, InvalidRequest
from esper.karn.budget import Allowance, Prediction
from esper.karn.feasible import POSITIONS, Limits, affordable, alive
from esper.karn.grammar import named
from esper.karn.mutate import mutate
from esper.karn.opportunity import Found, answers
from esper.karn.sample import Offspring, sample
from esper.karn.splice import splice
from esper.karn.templates import TEMPLATES

MAX_DESIGNS = 64
MOST_MOVES = 3
TRIES_PER_DESIGN = 200  # in a row that may come to nothing
# by what a design is made: nothing, one parent, two
_WAYS, _SHARES = ("sample", "mutate", "splice"), (0.25, 0.5, 0.25)


@dataclass(frozen=True, slots=True)
class Generated:
    """A feasible design, and why it is offered."""

    graph: Graph
    blueprint_id: str
    parents: tuple[str, ...]
    moves: tuple[str, ...]
    inference: Inference
    reason: str
    prediction: Prediction | None = None  # None: no budget was given

    @property
    def title(self) -> str:
        """Who made it, and of which library blueprints."""
        return f"karn_{self.blueprint_id[:8]}" + (f" of {' and '.join(self.parent_titles)}" if self.parents else "")

    @property
    def parent_titles(self) -> tuple[str, ...]:
        """Of the library where the parent is there, else the first digits of its id."""
        titles = {blueprint_id(template.graph): template.title for template in TEMPLATES.values()}
        return tuple(titles.get(parent, parent[:8]) for parent in self.parents)

    @property
    def family(self) -> str:
        """By its most telling operator: what mixes positions first, then gates and norms, then the rest."""
        return family_of(self.graph)


def parents_of_the_library() -> dict[str, Graph]:
    """The template library by blueprint id."""
    return {blueprint_id(template.graph): template.graph for template in TEMPLATES.values()}


def family_of(graph: Graph) -> str:
    operators = {node.operator for node in graph.nodes}
    if "attention" in operators:
        return "attention"
    if "conv" in operators:
        return "conv"
    if "mul" in operators:
        return "gate"
    return "mlp" if "linear" in operators else "norm"


def generate(
    found: Found,
    rng: Random,
    parents: Mapping[str, Graph],
    count: int = 1,
    exclude: Set[str] = frozenset(),
    limits: Limits = Limits(),  # noqa: B008  frozen
    allowance: Allowance | None = None,
) -> tuple[list[Generated], str]:
    """(up to `count` designs, reason where there are fewer); none has an id of `parents` or `exclude`.

    `parents`: by blueprint id; those that do not fit the interface are passed over. `allowance`: what is predicted
    to take more is not made. The same state of `rng`, the same parents and the same allowance give the same designs.
    Raises InvalidRequest for a count out of bounds.
    """
    if not 1 <= count <= MAX_DESIGNS:
        raise InvalidRequest(f"count is {count}; it must be 1 to {MAX_DESIGNS}")
    if found.max_parameters:
        limits = replace(limits, max_parameters=found.max_parameters)
    fitting = {name: parents[name] for name in sorted(parents) if match(parents[name], found.interface)[0]}
    fit = {k: g for k, g in fitting.items() if answers(g, found.interface, found.kind)[0]}
    known, made = {*parents, *exclude}, list[Generated]()
    refusals: dict[str, int] = {}
    tries = last = 0  # in all, and up to the latest design
    while len(made) < count and tries - last < TRIES_PER_DESIGN:
        tries += 1
        offspring = breed(found.interface, rng, fit or fitting)
        if offspring is None:
            continue
        design, reason = _judge(offspring, found, known, limits, allowance)
        if design is None:
            refusals[reason] = refusals.get(reason, 0) + 1
        else:
            known.add(design.blueprint_id)
            made.append(design)
            last = tries
    if len(made) == count:
        return made, ""
    most = max(refusals, key=lambda r: refusals[r], default="nothing could be written for this interface")
    return made, f"{len(made)} of {count} designs in {tries} tries; most often: {most}"


def _judge(
    offspring: Offspring, found: Found, known: Set[str], limits: Limits, allowance: Allowance | None
) -> tuple[Generated | None, str]:
    """What costs least to find out comes first."""
    graph = named(offspring.graph)
    name = blueprint_id(graph)
    if name in known:
        return None, "it is there already"
    to_the_point, character = answers(graph, found.interface, found.kind)
    if not to_the_point:
        return None, character
    fine, why = affordable(graph, found.interface, limits)
    prediction = None
    if fine and allowance is not None:
        prediction, fine, why = allowance.judge(graph, found.interface)
    if fine:
        fine, why = alive(graph, found.interface)
    if not fine:
        return None, why
    inference = infer(graph, found.interface, POSITIONS if found.interface.kind.position_dims else 1)
    reason = f"for {found.kind.value} ({found.evidence}): {character}; {inference.parameter_count} parameters"
    return Generated(graph, name, offspring.parents, offspring.moves, inference, reason, prediction), ""


def breed(interface: Interface, rng: Random, parents: Mapping[str, Graph]) -> Offspring | None:
    """One offspring of drawn parents, or one drawn from nothing; None where the draw came to nothing."""
    [way] = rng.choices(_WAYS, _SHARES)
    names: Sequence[str] = list(parents)
    try:
        if way == "sample" or not names:
            return sample(interface, rng)
        if way == "splice" and len(names) > 1:
            one, two = rng.sample(names, 2)
            spliced = splice(parents[one], parents[two], rng)
            return spliced and Offspring(spliced[0], (one, two), (spliced[1],))
        return _mutated(rng.choice(names), interface, rng, parents)
    except InvalidBlueprint:
        return None


def _mutated(parent: str, interface: Interface, rng: Random, parents: Mapping[str, Graph]) -> Offspring | None:
    graph, moves = parents[parent], list[str]()
    for _ in range(rng.randint(1, MOST_MOVES)):
        if changed := mutate(graph, interface, rng):
            graph = changed[0]
            moves.append(changed[1])
    return Offspring(graph, (parent,), tuple(moves)) if moves else None
