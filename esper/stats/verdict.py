"""Keep or remove: one rule for growth and removal. Pure."""

import math
from dataclasses import dataclass

from esper.stats.paired import Paired


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a graft must show to stay."""

    min_gain: float = 0.01  # relative reduction of the held-out loss
    min_standard_errors: float = 1.0  # the same reduction in standard errors


def judge(seen: Paired, rule: Rule) -> tuple[bool, str]:
    """Keep if the gain is above both thresholds of `rule`; the reason names every number.

    A loss that is not a number is never kept.
    """
    numbers = (
        f"held-out gain {seen.gain:+.2%} ± {seen.gain_standard_error:.2%} over {seen.pairs} examples"
        f" (limits {rule.min_gain:.1%} and {rule.min_standard_errors:g} standard errors)"
    )
    if not all(map(math.isfinite, (seen.mean, seen.control_mean, seen.standard_error))):
        return False, (
            f"the losses are not finite: mean {seen.mean} with, {seen.control_mean} without, "
            f"standard error {seen.standard_error}"
        )
    if seen.gain <= rule.min_gain:
        return False, f"{numbers}: too small"
    if seen.standard_errors <= rule.min_standard_errors:
        return False, f"{numbers}: within the noise"
    return True, numbers


def probability_above(seen: Paired, gain: float) -> float:
    """Probability that the true gain is above `gain`, were the paired difference normal; 0.5 where nothing tells."""
    if not math.isfinite(seen.gain) or math.isnan(seen.gain_standard_error):
        return 0.5
    above = seen.gain - gain
    if not above:
        return 0.5
    if not seen.gain_standard_error:
        return float(above > 0)
    return 0.5 * math.erfc(-above / seen.gain_standard_error / math.sqrt(2))


def nominal_false_keep_rate(rule: Rule) -> float:
    """Probability that `judge` keeps a graft whose true difference is 0, were differences normal and pairs many.

    An upper bound as far as `min_gain` is above 0; with few pairs the standard error is itself uncertain and the
    rate higher (Student 1908). `python -m bench verdict` measures the rate on real grafts (docs/growth.md), and is
    what `ablation_min_gain` was chosen by: so that the rate holds where the control is the graft switched off too.
    """
    return 0.5 * math.erfc(rule.min_standard_errors / math.sqrt(2))
