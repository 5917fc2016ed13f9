"""A graph as aligned text for people."""

from collections.abc import Sequence

from esper.blueprint.canonical import Step, blueprint_id, canonical
from esper.blueprint.check import shape_text
from esper.blueprint.ir import INPUT, Graph
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Extent


def show(graph: Graph) -> str:
    """What `parse` reads back.

    In canonical order: parameters with shape and initialiser, nodes with call, attributes and channels.
    """
    form = canonical(graph)
    names = [INPUT, *(step.node.name for step in form.steps)]
    nodes = []
    for step in form.steps:
        arguments = [names[i] for i in step.inputs] + [form.parameters[i].name for i in step.parameters]
        settings = settings_text(step)
        pooled = " pooled" if step.value.extent is Extent.POOLED else ""
        call = f"= {step.node.operator}({', '.join(arguments)})"
        nodes.append((step.node.name, call, settings, f"-> {step.value.channels}{pooled}"))
    parameters = [(p.name, shape_text(p.shape), p.initialiser.value) for p in form.parameters]
    head = f"blueprint {blueprint_id(graph)[:16]}, version {graph.version}"
    return "\n".join([head, *_aligned(parameters), *_aligned(nodes), f"  return {names[-1]}"]) + "\n"


def settings_text(step: Step) -> str:
    """ "eps=1e-05 groups=2": what the canonical form has, an implied attribute that has its default left out."""
    silent = {(s.name, s.default) for s in OPERATORS[step.node.operator].settings if s.implied}
    return " ".join(f"{name}={value}" for name, value in sorted(step.attributes.items()) if (name, value) not in silent)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
