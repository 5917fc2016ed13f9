"""A graph as aligned text for people."""

from collections.abc import Sequence

from esper.blueprint.canonical import blueprint_id, canonical
from esper.blueprint.check import shape_text
from esper.blueprint.ir import INPUT, Graph
from esper.blueprint.signature import Extent


def show(graph: Graph) -> str:
    """Canonical order: parameters with shape and initialiser, nodes with call, attributes and channels."""
    form = canonical(graph)
    names = [INPUT, *(step.node.name for step in form.steps)]
    nodes = []
    for step in form.steps:
        arguments = [names[i] for i in step.inputs] + [form.parameters[i].name for i in step.parameters]
        settings = " ".join(f"{name}={value}" for name, value in sorted(step.attributes.items()))
        pooled = " pooled" if step.value.extent is Extent.POOLED else ""
        call = f"= {step.node.operator}({', '.join(arguments)})"
        nodes.append((step.node.name, call, settings, f"-> {step.value.channels}{pooled}"))
    parameters = [(p.name, shape_text(p.shape), p.initialiser.value) for p in form.parameters]
    head = f"blueprint {blueprint_id(graph)[:16]}, version {graph.version}"
    return "\n".join([head, *_aligned(parameters), *_aligned(nodes), f"  return {names[-1]}"]) + "\n"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
