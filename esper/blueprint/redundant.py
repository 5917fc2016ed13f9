"""Nodes that do again what was just done, to no effect."""

from esper.blueprint.ir import Graph

# f(f(x)) = f(x), exactly.
IDEMPOTENT = frozenset({"relu", "relu6"})


def redundant(graph: Graph) -> tuple[str, ...]:
    """A reason for every node of a well-formed graph that changes nothing; empty: there is none."""
    operator_of = {node.name: node.operator for node in graph.nodes}
    return tuple(
        f"node {node.name!r} repeats the {node.operator} it takes its input from; leave one out"
        for node in graph.nodes
        if node.operator in IDEMPOTENT and operator_of.get(node.inputs[0]) == node.operator
    )
