"""Where a graph fits and what it costs there, as a table for people."""

from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import Graph
from esper.blueprint.matching import match

CHANNELS, POSITIONS = 64, 256  # what the table is for where nothing else is said


def interfaces(channels: int = CHANNELS) -> list[Interface]:
    """One of each kind, and the causal ones."""
    kinds = [(kind, False) for kind in Kind] + [(Kind.TOKENS, True), (Kind.MAP1D, True)]
    return [Interface(kind, channels, causal=causal) for kind, causal in kinds]


def describe(graph: Graph, channels: int = CHANNELS, positions: int = POSITIONS) -> str:
    """A row per kind of interface: parameters, operations and activation bytes per position, or why it does not fit."""
    head = ("interface", "parameters", "operations/position", "activation bytes/position")
    rows = [head]
    misfits = []
    for interface in interfaces(channels):
        fits, reason = match(graph, interface)
        if not fits:
            misfits.append(f"  {interface}: does not fit: {reason}")
            continue
        cost = infer(graph, interface, positions if interface.kind.position_dims else 1)
        moved = cost.activation_elements_per_position * interface.dtype.itemsize
        rows.append((str(interface), f"{cost.parameter_count}", f"{cost.forward_flops_per_position}", f"{moved}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([*(lines if len(rows) > 1 else []), *misfits]) + "\n"
