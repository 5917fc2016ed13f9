"""Decide which library designs to offer for an interface, best first, and say why.

The order is a prior: mean relative gain in held-out loss of grafts on small networks
(convolutional: digits and oriented textures; tokens: a two-layer character transformer),
each against the same run without the graft. A template that was not measured on a kind
stands next to the measured one it resembles, or behind them all, and says so.
"""

from collections.abc import Set
from dataclasses import dataclass

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.infer import Inference, infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.matching import match
from esper.errors import InvalidRequest
from esper.karn.templates import TEMPLATES, Template

DEFAULT_LIMIT = 8
MAX_LIMIT = 64

_MAPS = (
    ("conv3", "largest mean gain on small convolutional networks"),
    ("depthwise_separable", "second largest mean gain on small convolutional networks"),
    ("causal_depthwise", "not measured on maps; resembles depthwise_separable"),
    ("wide_mlp", "third largest mean gain on small convolutional networks"),
    ("single_head_attention", "small mean gain on small convolutional networks"),
    ("bottleneck_mlp", "not measured on maps; a smaller wide_mlp"),
    ("low_rank", "gain within noise on small convolutional networks"),
    ("normalisation", "gain within noise on small convolutional networks"),
    ("squeeze_excitation", "mean gain below zero on small convolutional networks"),
)
_PRIOR: dict[Kind, tuple[tuple[str, str], ...]] = {
    Kind.MAP2D: _MAPS,
    Kind.MAP1D: _MAPS,
    Kind.TOKENS: (
        ("causal_depthwise", "largest mean gain on a character transformer"),
        ("depthwise_separable", "not measured on tokens; resembles causal_depthwise"),
        ("conv3", "not measured on tokens; resembles causal_depthwise at more parameters"),
        ("single_head_attention", "gain near zero on a character transformer"),
        ("wide_mlp", "gain near zero on a character transformer"),
        ("bottleneck_mlp", "not measured on tokens; a smaller wide_mlp"),
        ("low_rank", "gain within noise on a character transformer"),
        ("normalisation", "gain within noise on a character transformer"),
        ("squeeze_excitation", "not measured on tokens; below zero on small convolutional networks"),
    ),
    Kind.VECTOR: (
        ("wide_mlp", "on small multilayer perceptrons gain grows with size"),
        ("bottleneck_mlp", "on small multilayer perceptrons gain grows with size; an eighth of wide_mlp's"),
        ("low_rank", "gain within noise on small multilayer perceptrons"),
        ("normalisation", "gain within noise on small multilayer perceptrons"),
    ),
}


@dataclass(frozen=True, slots=True)
class Design:
    """A template at an interface (`inference` None: at none), and why it is offered."""

    template: Template
    blueprint_id: str
    reason: str
    inference: Inference | None = None


def templates(interface: Interface | None = None) -> list[Design]:
    """The library by title; with an interface, those that can be lowered for it."""
    offered = []
    for title in sorted(TEMPLATES):
        template = TEMPLATES[title]
        if interface is None:
            offered.append(Design(template, blueprint_id(template.graph), "in the library"))
            continue
        fits, reason = match(template.graph, interface)
        if fits:
            offered.append(_design(template, interface, reason))
    return offered


def propose(
    interface: Interface,
    max_parameters: int = 0,
    limit: int = DEFAULT_LIMIT,
    exclude: Set[str] = frozenset(),
) -> list[Design]:
    """Designs for `interface`, best first; none is a normal answer.

    `max_parameters` 0: no limit. `limit` is 1 to 64. `exclude` holds blueprint ids that are
    not wanted. Raises InvalidRequest for a limit out of bounds.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit is {limit}; it must be 1 to {MAX_LIMIT}")
    offered = []
    for rank, (title, basis) in enumerate(_order(interface.kind), start=1):
        graph = TEMPLATES[title].graph
        if blueprint_id(graph) in exclude or not match(graph, interface)[0]:
            continue
        count = infer(graph, interface).parameter_count
        if max_parameters and count > max_parameters:
            continue
        budget = f" of {max_parameters} allowed" if max_parameters else ""
        reason = f"prior rank {rank} on {interface.kind.value}: {basis}; {count} parameters{budget}"
        offered.append(_design(TEMPLATES[title], interface, reason))
    return offered[:limit]


def _order(kind: Kind) -> list[tuple[str, str]]:
    """Every template: those of the prior, then the others by title, each with what its place rests on."""
    ranked = dict(_PRIOR[kind])
    others = {title: f"not measured on {kind.value}; by title" for title in sorted(TEMPLATES) if title not in ranked}
    return [*(ranked | others).items()]


def _design(template: Template, interface: Interface, reason: str) -> Design:
    return Design(template, blueprint_id(template.graph), reason, infer(template.graph, interface))
