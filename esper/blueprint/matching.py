"""Decide whether a graph can be lowered for an interface, without building a tensor."""

from collections.abc import Iterator

from esper.blueprint.canonical import Canonical, Step, canonical
from esper.blueprint.interface import Interface
from esper.blueprint.ir import CHANNELS, MAX_SIZE, Dimension, Graph
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Binding, Value


def match(graph: Graph, interface: Interface) -> tuple[bool, str]:
    """(answer, reason); the reason names the node and the rule. Raises InvalidBlueprint if the graph is ill-formed."""
    form = canonical(graph)
    reason = next(_obstacles(form, interface), "")
    return (not reason, reason or f"fits {interface}")


def bindings(form: Canonical, interface: Interface) -> tuple[Binding, ...]:
    """Each step at the interface."""
    values = [Value(CHANNELS), *(step.value for step in form.steps)]
    return tuple(_bind(step, [values[i] for i in step.inputs], interface) for step in form.steps)


def _bind(step: Step, inputs: list[Value], interface: Interface) -> Binding:
    def resolve(size: Dimension) -> int:
        return size.resolve(interface.channels)

    roles = OPERATORS[step.node.operator].roles
    return Binding(
        kind=interface.kind,
        causal=interface.causal,
        inputs=tuple((resolve(value.channels), value.extent) for value in inputs),
        channels=resolve(step.value.channels),
        extent=step.value.extent,
        parameter_count=len(step.parameters),
        attributes={k: resolve(v) if isinstance(v, Dimension) else v for k, v in step.attributes.items()},
        parameter_sizes=tuple(tuple(map(resolve, role.shape(tuple(inputs), step.attributes))) for role in roles),
    )


def _obstacles(form: Canonical, interface: Interface) -> Iterator[str]:
    for parameter in form.parameters:
        for size in parameter.shape:
            if size.resolve(interface.channels) > MAX_SIZE:
                yield (
                    f"parameter {parameter.name!r}: {size} is {size.resolve(interface.channels)} "
                    f"at {interface}; at most {MAX_SIZE}"
                )
    for step, binding in zip(form.steps, bindings(form, interface), strict=True):
        operator = OPERATORS[step.node.operator]
        what = f"node {step.node.name!r}: {operator.name}"
        if interface.kind not in operator.kinds:
            dims = interface.kind.position_dims
            yield f"{what} needs positions" + (
                f" in one order; {interface} has two" if dims else f"; {interface} has none"
            )
        elif interface.causal and not operator.can_be_causal:
            yield f"{what} looks at later positions; {interface} forbids it"
        elif reason := operator.fits(binding):
            yield f"{what}: {reason}"
