"""Decide whether a blueprint is worth a worker's time, before anything is compiled."""

from dataclasses import dataclass

from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.blueprint.matching import match
from esper.tezzeret.birth import zero_at_birth
from esper.tezzeret.patterns import bad_patterns


@dataclass(frozen=True, slots=True)
class CostLimits:
    """The most a kernel may cost, each inclusive; per batch element and position where positions are counted.

    `positions`: how many a batch element is taken to have, because attention's cost grows with them.
    """

    max_parameters: int = 1 << 26
    max_forward_flops_per_position: int = 1 << 31
    max_activation_bytes_per_position: int = 1 << 24
    positions: int = 256


def check(
    graph: Graph,
    interface: Interface,
    limits: CostLimits = CostLimits(),  # noqa: B008  frozen
) -> tuple[bool, tuple[str, ...]]:
    """(answer, reasons): every rule that is broken, so that one round of changes is enough.

    Raises InvalidBlueprint where the graph is not well formed at any interface.
    """
    reasons = (*birth_reasons(graph), *fit_reasons(graph, interface, limits))
    return (not reasons, reasons)


def birth_reasons(graph: Graph) -> tuple[str, ...]:
    """What is wrong with the blueprint whatever the interface."""
    fine, reason = zero_at_birth(graph)
    return (*(() if fine else (reason,)), *bad_patterns(graph))


def fit_reasons(
    graph: Graph,
    interface: Interface,
    limits: CostLimits = CostLimits(),  # noqa: B008  frozen
) -> tuple[str, ...]:
    """What is wrong with the blueprint at this interface."""
    fits, reason = match(graph, interface)
    if not fits:
        return (reason,)
    cost = infer(graph, interface, limits.positions if interface.kind.position_dims else 1)
    activation_bytes = cost.activation_elements_per_position * interface.dtype.itemsize
    readings = (
        ("parameters", cost.parameter_count, limits.max_parameters),
        ("forward operations per position", cost.forward_flops_per_position, limits.max_forward_flops_per_position),
        ("activation bytes per position", activation_bytes, limits.max_activation_bytes_per_position),
    )
    return tuple(
        f"{seen} {name} at {interface}, at most {limit}; use fewer channels or a narrower blueprint"
        for name, seen, limit in readings
        if seen > limit
    )
