"""The operator set, version 1: the one table that checking, cost, lowering, source and documentation read."""

from esper.blueprint import pointwise, positional, weighted
from esper.blueprint.signature import Operator

_ROWS = weighted.ROWS + positional.ROWS + pointwise.ROWS
OPERATORS: dict[str, Operator] = {row.name: row for row in sorted(_ROWS, key=lambda row: row.name)}


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
        f"`{s.name}`: {s.rule}" + (f"; default {s.default}" if s.default is not None else "") for s in operator.settings
    ]
