"""How each operator that can be fused is written in Triton, forward and backward. An operator not here is not fused.

What a rule is: rule.py. Why an operator has none: unfused.py. Formulas of the gradients are those of the functions in
esper/blueprint.
"""

from esper.tezzeret import rules_pair, rules_pointwise, rules_rows
from esper.tezzeret.rule import Rule

HELPERS = rules_pointwise.HELPERS
RULES: dict[str, Rule] = {**rules_pointwise.RULES, **rules_rows.RULES, **rules_pair.RULES}
