"""A graph made concrete: its canonical steps at one interface, with sizes in numbers."""

from dataclasses import dataclass

from esper.blueprint.canonical import Canonical, canonical
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.blueprint.matching import bindings, match
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Binding, Form
from esper.errors import InvalidBlueprint


@dataclass(frozen=True, slots=True)
class Plan:
    """What infer, lower and emit work from. `shapes` are the parameters', in canonical order."""

    form: Canonical
    interface: Interface
    bindings: tuple[Binding, ...]  # one per step
    shapes: tuple[tuple[int, ...], ...]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.form.parameters)

    def forms(self) -> tuple[Form, ...]:
        """Each step as a callable and as source."""
        return tuple(
            OPERATORS[step.node.operator].form(binding)
            for step, binding in zip(self.form.steps, self.bindings, strict=True)
        )


def plan(graph: Graph, interface: Interface) -> Plan:
    """Raises InvalidBlueprint, with match's reason, where `graph` cannot be lowered for `interface`."""
    fits, reason = match(graph, interface)
    if not fits:
        raise InvalidBlueprint(reason)
    form = canonical(graph)
    return Plan(form, interface, bindings(form, interface), _shapes(form, interface))


def _shapes(form: Canonical, interface: Interface) -> tuple[tuple[int, ...], ...]:
    """Sizes in numbers; a convolution's kernel is repeated for every position dimension."""
    per_axis = set()
    for step in form.steps:
        roles = OPERATORS[step.node.operator].roles
        per_axis |= {place for role, place in zip(roles, step.parameters, strict=False) if role.per_axis}
    shapes = []
    for place, parameter in enumerate(form.parameters):
        shape = tuple(size.resolve(interface.channels) for size in parameter.shape)
        repeats = interface.kind.position_dims if place in per_axis else 1
        shapes.append(shape[:-1] + shape[-1:] * repeats)
    return tuple(shapes)
