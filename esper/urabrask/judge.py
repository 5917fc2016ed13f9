"""Decide what a kernel's measurements mean: promoted or not, and which words describe it.

Pure: no clock, no message, no tensor. The rules stand in docs/evaluation.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

HIGH_SPEED_RATIO = 0.9  # of the reference lowering's forward time
LOW_MEMORY_RATIO = 0.9  # of the reference lowering's peak
STABLE_READING = 0.1  # share of the gradient tolerance
SMALL_PARAMETERS = 4096
ENOUGH_RUNS = 30
STEADY_SPREAD = 0.5  # (p90 - p10) / p50 of forward times


@dataclass(frozen=True, slots=True)
class Checked:
    """One check's word."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, where everything was."""

    forward_ratio: float
    spread: float
    runs: int
    peak_bytes: int
    reference_peak_bytes: int
    gradient_reading: float
    parameter_count: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`confident`: enough runs, and they agree."""

    passed: bool
    reason: str
    tags: tuple[str, ...] = ()
    confident: bool = False


def judge(checks: Sequence[Checked], expected: Sequence[str], measured: Measured | None, isolation: str) -> Verdict:
    """Promote what passed every expected check, in order, in isolation, and was measured; and say why, or why not."""
    failed = [check for check in checks if not check.passed]
    if failed:
        return Verdict(False, f"{failed[0].name}: {failed[0].detail}")
    if not isolation:
        return Verdict(False, "isolation: none was in force, so nothing it did can be relied on")
    names = [check.name for check in checks]
    if names != list(expected) or measured is None:
        missing = next((name for name in expected if name not in names), "the measurements")
        return Verdict(False, f"{missing}: was not reached; all of {', '.join(expected)} must pass in this order")
    confident = measured.runs >= ENOUGH_RUNS and measured.spread <= STEADY_SPREAD
    return Verdict(True, f"every check passed ({len(names)})", tags(measured), confident)


def tags(measured: Measured) -> tuple[str, ...]:
    """Words for a kernel that passed, in alphabetical order. Speed is claimed only where the times agree."""
    rules = {
        "high_speed": measured.forward_ratio <= HIGH_SPEED_RATIO and measured.spread <= STEADY_SPREAD,
        "low_memory": measured.peak_bytes <= LOW_MEMORY_RATIO * measured.reference_peak_bytes,
        "numerically_stable": measured.gradient_reading <= STABLE_READING,
        "small": measured.parameter_count <= SMALL_PARAMETERS,
    }
    return tuple(sorted(word for word, holds in rules.items() if holds))
