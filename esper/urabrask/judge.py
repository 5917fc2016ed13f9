"""Decide what a kernel's measurements mean: promoted or not, which words describe it, how sure that is.

Pure: no clock, no message, no tensor. The rules stand in docs/evaluation.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from esper.urabrask.population import Standing

# While too few peers are known: shares of the reference lowering's forward time and peak.
HIGH_SPEED_RATIO = 0.9
LOW_MEMORY_RATIO = 0.9
# With peers: the best so many of them.
BEST_SHARE = 0.2
STABLE_READING = 0.1  # share of the gradient tolerance
SMALL_PARAMETERS = 4096
ENOUGH_RUNS = 30
# Words of confidence, which every promoted kernel has one of.
MODERATE, SPECULATIVE = "moderate", "speculative"
UNPROMOTABLE = "unpromotable"


@dataclass(frozen=True, slots=True)
class Checked:
    """One check's word."""

    name: str
    passed: bool
    detail: str
    elapsed_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, where everything was. `measurable`: the times of the runs agree."""

    forward_ratio: float
    measurable: bool
    runs: int
    peak_bytes: int
    reference_peak_bytes: int
    gradient_reading: float
    parameter_count: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`unpromotable`: why whatever this evaluator finds promotes nothing and rejects nothing; empty: it counts."""

    passed: bool
    reason: str
    unpromotable: str = ""


def judge(
    checks: Sequence[Checked],
    expected: Sequence[str],
    measured: Measured | None,
    isolation: str,
    unpromotable: str = "",
) -> Verdict:
    """Promote what passed every expected check, in order, in isolation, and was measured; and say why, or why not."""
    if unpromotable:
        return Verdict(False, f"{UNPROMOTABLE}: {unpromotable}", unpromotable)
    failed = [check for check in checks if not check.passed]
    if failed:
        return Verdict(False, f"{failed[0].name}: {failed[0].detail}")
    if not isolation:
        return Verdict(False, "isolation: none was in force, so nothing it did can be relied on")
    names = [check.name for check in checks]
    if names != list(expected) or measured is None:
        missing = next((name for name in expected if name not in names), "the measurements")
        return Verdict(False, f"{missing}: was not reached; all of {', '.join(expected)} must pass in this order")
    return Verdict(True, f"every check passed ({len(names)})")


def confident(measured: Measured, standing: Standing) -> bool:
    """Enough runs that agree, and enough peers to compare with."""
    return measured.runs >= ENOUGH_RUNS and measured.measurable and standing.known


def tags(measured: Measured, standing: Standing) -> tuple[str, ...]:
    """Words for a kernel that passed, in alphabetical order. Speed is claimed only where the times agree."""
    if standing.known:
        fast, lean = standing.speed_rank <= BEST_SHARE, standing.memory_rank <= BEST_SHARE
    else:
        fast = measured.forward_ratio <= HIGH_SPEED_RATIO
        lean = measured.peak_bytes <= LOW_MEMORY_RATIO * measured.reference_peak_bytes
    rules = {
        "high_speed": fast and measured.measurable,
        "low_memory": lean,
        MODERATE: confident(measured, standing),
        "numerically_stable": measured.gradient_reading <= STABLE_READING,
        "small": measured.parameter_count <= SMALL_PARAMETERS,
        SPECULATIVE: not confident(measured, standing),
    }
    return tuple(sorted(word for word, holds in rules.items() if holds))


def interest(standing: Standing, sure: bool, gain_standard_errors: float | None) -> float:
    """0 to 1: how much there is to win or to learn from trying this kernel, as a mean of three parts.

    Half: the usefulness probe's gain, 0 at 0 and 1 at 4 standard errors; half of it where there is none yet.
    A quarter: how far from its peers' middle it is in time and memory; 1 where too few are known. A
    quarter: 1 while the report is speculative.
    """
    won = 0.5 if gain_standard_errors is None else min(1.0, max(0.0, gain_standard_errors / 4))
    apart = 1.0
    if standing.known:
        apart = abs(2 * standing.speed_rank - 1) / 2 + abs(2 * standing.memory_rank - 1) / 2
    return 0.5 * won + 0.25 * apart + 0.25 * (not sure)
