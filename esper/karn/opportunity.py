"""Find where a model could be grown and what for, and say what answers it.

From what its sites are and what was read at them.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from esper.blueprint.check import check
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import Graph
from esper.blueprint.operators import OPERATORS
from esper.karn.grammar import settled

WIDE_PARAMETERS = 64  # of a layer, from which a product of two thinner ones is worth a thought
DEAD_RATIO = 0.1  # of channels, from which an activation is worth changing
_ACTIVATIONS = ("relu", "gelu", "silu", "swish", "tanh", "sigmoid", "activation")


# operators without parameters at one position that are no activation
_LINEAR = {"add", "mul", "split", "concat", "channel_shuffle", "broadcast", "rotary", "sinusoid"}


class Opportunity(enum.Enum):
    """What a site could be grown for."""

    ATTENTION = "attention"
    DECOMPOSITION = "decomposition"
    ACTIVATION = "activation"
    NORMALISATION = "normalisation"
    CAPACITY = "capacity"


@dataclass(frozen=True, slots=True)
class SiteDescription:
    """One site of a model. `dead_ratio`: share of channels that are zero on a whole batch; None: it was not read."""

    name: str
    layer_kind: str  # class of the module
    interface: Interface
    parameter_count: int = 0
    dead_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An opportunity. `max_parameters` 0: no limit."""

    site: str
    interface: Interface
    kind: Opportunity
    evidence: str
    max_parameters: int = 0


def opportunities(sites: Iterable[SiteDescription], max_parameters: int = 0) -> list[Found]:
    """All there are at `sites`, in their order; every site that is a layer or a block of layers has one."""
    return [
        Found(site.name, site.interface, kind, evidence, max_parameters)
        for site in sites
        for kind, evidence in _at(site)
    ]


def _at(site: SiteDescription) -> list[tuple[Opportunity, str]]:
    word, what = site.layer_kind.lower(), f"a {site.layer_kind} of {site.parameter_count} parameters"
    found = []
    if "attention" in word and site.interface.kind is not Kind.VECTOR:
        found.append((Opportunity.ATTENTION, what))
    if "norm" in word and site.interface.channels >= 2:
        found.append((Opportunity.NORMALISATION, what))
    dead = site.dead_ratio or 0.0
    if any(name in word for name in _ACTIVATIONS):
        found.append((Opportunity.ACTIVATION, what))
    elif dead >= DEAD_RATIO:
        found.append((Opportunity.ACTIVATION, f"{dead:.0%} of its channels are dead, from {DEAD_RATIO:.0%} on"))
    if word in ("linear", "conv1d", "conv2d") and site.parameter_count >= WIDE_PARAMETERS:
        found.append((Opportunity.DECOMPOSITION, f"{what}, from {WIDE_PARAMETERS} on"))
    if not found or word in ("linear", "conv1d", "conv2d"):
        found.append((Opportunity.CAPACITY, what))
    return found


def answers(graph: Graph, interface: Interface, kind: Opportunity) -> tuple[bool, str]:
    """(answer, reason): whether the design is of the sort that this kind of opportunity asks for."""
    operators = {node.operator for node in graph.nodes}
    if kind is Opportunity.ATTENTION:
        seen = sorted(o for o in operators if OPERATORS[o].mixes_positions)
        return _has(seen, "an operator that looks at other positions")
    if kind is Opportunity.NORMALISATION:
        return _has(sorted(o for o in operators if "norm" in o), "a normalisation")
    if kind is Opportunity.ACTIVATION:
        plain = {o for o in operators if not OPERATORS[o].roles and not OPERATORS[o].mixes_positions}
        return _has(sorted(plain - _LINEAR), "an activation")
    if kind is Opportunity.DECOMPOSITION:
        return _has(_narrow(graph, interface), "a width below the input's before its end")
    matrices = sum(len(p.shape) >= 2 for p in graph.parameters)
    return matrices > 0, f"{matrices} weight matrices" if matrices else "it has no weight matrix"


def _narrow(graph: Graph, interface: Interface) -> list[str]:
    values, fixed, at = check(graph).values, settled(graph), interface.channels
    inside = {n.operator: values[n.name].channels for n in graph.nodes if n.name not in fixed and n.parameters}
    return sorted(f"{name} of {size}" for name, size in inside.items() if size.resolve(at) < at)


def _has(seen: list[str], what: str) -> tuple[bool, str]:
    return bool(seen), f"has {what}: {', '.join(seen)}" if seen else f"has not {what}"
