"""Decide whether a graph may be offered: it fits, is within budget, changes nothing at birth, and can learn.

What the graph says is read from it; what only numbers show is tried on a small input, once with the values
of birth and once with values that are not zero.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.blueprint.infer import infer
from esper.blueprint.initialise import initialise
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.blueprint.lower import Lowered, lower
from esper.blueprint.matching import match
from esper.blueprint.redundant import redundant
from esper.errors import InvalidBlueprint

POSITIONS = 256  # a batch element is taken to have, because attention's cost grows with them
PROBE_CHANNELS = 24
LARGE = 1e4


@dataclass(frozen=True, slots=True)
class Limits:
    """The most a design may cost, each inclusive; 0: no limit."""

    max_parameters: int = 1 << 24
    max_forward_flops_per_position: int = 1 << 30
    max_nodes: int = 24


def feasible(graph: Graph, interface: Interface, limits: Limits = Limits()) -> tuple[bool, str]:  # noqa: B008  frozen
    """(answer, reason); the reason of a refusal names the value and the limit."""
    fine, reason = affordable(graph, interface, limits)
    return alive(graph, interface) if fine else (False, reason)


def affordable(graph: Graph, interface: Interface, limits: Limits) -> tuple[bool, str]:
    """`feasible` as far as the graph says, without trying it: (answer, reason)."""
    try:
        fits, reason = match(graph, interface)
    except InvalidBlueprint as error:
        return False, str(error)
    if not fits:
        return False, reason
    if idle := redundant(graph):
        return False, idle[0]
    if len(graph.nodes) > limits.max_nodes:
        return False, f"{len(graph.nodes)} nodes, at most {limits.max_nodes}"
    cost = infer(graph, interface, POSITIONS if interface.kind.position_dims else 1)
    for what, seen, limit in (
        ("parameters", cost.parameter_count, limits.max_parameters),
        ("forward operations per position", cost.forward_flops_per_position, limits.max_forward_flops_per_position),
    ):
        if limit and seen > limit:
            return False, f"{seen} {what}, at most {limit}"
    return True, "within the limits"


def alive(graph: Graph, interface: Interface) -> tuple[bool, str]:
    """Zero at birth with a gradient to learn from, and finite and moved by every parameter once it has learned."""
    at = _small(graph, interface)
    module = lower(graph, at)
    if not module.parameter_names:
        return False, "it has no parameter, so it can never learn"
    generator = torch.Generator().manual_seed(0)
    initialise(module, generator)
    h = at.example(3, *[5] * at.kind.position_dims, generator=generator)
    out, gradients = _run(module, h)
    if out.any():
        return False, f"largest value at birth is {out.abs().max():.3g}; it must be exactly 0"
    if not any(gradient.any() for gradient in gradients):
        return False, "no parameter gets a gradient at birth"
    with torch.no_grad():
        for parameter in module.ordered_parameters():
            spread = max(1, parameter[0].numel()) ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * spread)
    out, gradients = _run(module, h)
    if not out.any():
        return False, "it is zero whatever its parameters are"
    for name, gradient in zip(module.parameter_names, gradients, strict=True):
        if not gradient.any():
            return False, f"parameter {name!r} never gets a gradient"
    narrow = module.to(torch.float32)
    out, gradients = _run(narrow, (h * LARGE).float())
    if not all(torch.isfinite(value).all() for value in (out, *gradients)):
        return False, f"not finite for input of size {LARGE:g}"
    return True, f"fits {interface}, zero at birth, every parameter learns"


def _small(graph: Graph, interface: Interface) -> Interface:
    """The same interface with few channels in float64, where the graph fits that."""
    few = replace(interface, channels=min(interface.channels, PROBE_CHANNELS), dtype=torch.float64)
    return few if match(graph, few)[0] else replace(interface, dtype=torch.float64)


def _run(module: Lowered, h: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """g(h), and the gradient of every parameter of a loss with another slope at every element."""
    out = module(h)
    slopes = torch.cos(torch.arange(out.numel(), dtype=h.dtype)).reshape(out.shape)
    return out.detach(), torch.autograd.grad((out * slopes).sum(), module.ordered_parameters(), materialize_grads=True)
