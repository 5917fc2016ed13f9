"""The operator set, version 1: the one table that checking, cost, lowering, source and documentation read."""

from esper.blueprint import (
    activations,
    attention,
    convolution,
    encodings,
    mixture,
    moves,
    norms,
    pointwise,
    pooling,
    weighted,
)
from esper.blueprint.signature import Operator

_FAMILIES = (weighted, mixture, convolution, attention, activations, norms, pointwise, pooling, moves, encodings)
_ROWS = [row for family in _FAMILIES for row in family.ROWS]
OPERATORS: dict[str, Operator] = {row.name: row for row in sorted(_ROWS, key=lambda row: row.name)}

# what people look for and does not exist, with the reason
_ONLY_A_FUNCTION = "a graft is a function of its parameters and its input alone, the same in every form of it"
REFUSED = {
    "dropout": f"{_ONLY_A_FUNCTION}, and a random mask is not; grafts are kept small by the verdict instead",
    "batch_norm": (
        f"{_ONLY_A_FUNCTION}, and this one depends on the rest of the batch and on running averages; "
        "use channel_norm, rms_norm, group_norm or position_norm"
    ),
}


def operator_table() -> str:
    """The table as Markdown, the way docs/blueprint-ir.md carries it."""
    head = "| operator | inputs | result | parameters | attributes | positions | causal | kinds |"
    lines = [head, "|" + "---|" * 8]
    lines += [_row(operator) for operator in OPERATORS.values()]
    return "\n".join(lines)


def _row(operator: Operator) -> str:
    roles = ", ".join(role.name + ("?" if role.optional else "") for role in operator.roles)
    settings = "; ".join(_setting(operator))
    kinds = "all" if len(operator.kinds) == 4 else ", ".join(sorted(kind.value for kind in operator.kinds))
    causal = "yes" if operator.can_be_causal else "no"
    cells = (f"`{operator.name}`", operator.arity, operator.formula, roles, settings, operator.positions.value)
    return "| " + " | ".join(map(str, cells)) + f" | {causal} | {kinds} |"


def _setting(operator: Operator) -> list[str]:
    return [
        f"`{s.name}`: {s.rule}"
        + (f"; default {s.default}" if s.default is not None else "")
        + (", implied" if s.implied else "")
        for s in operator.settings
    ]
