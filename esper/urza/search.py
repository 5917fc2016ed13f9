"""Which of the kernels for an interface come first, and why. Pure.

The store has filtered by interface, target, status and blueprint. Here, in order: tags
that must and must not be there, limits, then the score. Each preferred tag counts 1;
speed, size and memory together count at most 1, as shares of the best admitted kernel:

    score = preferred tags it has
          + 0.5 * fastest / its forward time
          + 0.3 * (1 + fewest parameters) / (1 + its parameters)
          + 0.2 * lowest peak / its peak bytes

What was not measured adds nothing, and is not within any limit. Ties go to the lower
artifact id, so equal libraries give equal answers.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from esper.urza.codec import Candidate, Wish

SPEED_WEIGHT, SIZE_WEIGHT, MEMORY_WEIGHT = 0.5, 0.3, 0.2


@dataclass(frozen=True, slots=True)
class Ranked:
    """One place in the answer; higher scores are better and comparable within one answer only."""

    artifact_id: str
    score: float
    reason: str


@dataclass(frozen=True, slots=True)
class _Best:
    """Lowest reading of each figure among the admitted; 0 where nothing was measured."""

    forward_us: float
    parameters: int
    peak_bytes: int


def rank(candidates: Iterable[Candidate], wish: Wish) -> list[Ranked]:
    """The best `wish.limit` of those that satisfy `wish`, best first."""
    admitted = [one for one in candidates if _admitted(one, wish)]
    best = _Best(
        forward_us=_lowest(one.forward_us_p50 for one in admitted),
        parameters=min((one.parameter_count for one in admitted), default=0),
        peak_bytes=int(_lowest(one.peak_bytes for one in admitted)),
    )
    scored = ((_score(one, wish, best), one) for one in admitted)
    first = heapq.nsmallest(wish.limit, scored, key=lambda pair: (-pair[0], pair[1].artifact_id))
    return [Ranked(one.artifact_id, score, _reason(one, wish, best)) for score, one in first]


def _admitted(one: Candidate, wish: Wish) -> bool:
    return (
        wish.required_tags <= one.tags
        and not (wish.excluded_tags & one.tags)
        and (not wish.max_parameters or one.parameter_count <= wish.max_parameters)
        and _within(one.forward_us_p50, wish.max_forward_us)
        and _within(one.peak_bytes, wish.max_peak_bytes)
    )


def _within(reading: float, limit: float) -> bool:
    return not limit or 0 < reading <= limit


def _lowest(readings: Iterable[float]) -> float:
    return min((reading for reading in readings if reading > 0), default=0.0)


def _score(one: Candidate, wish: Wish, best: _Best) -> float:
    speed = best.forward_us / one.forward_us_p50 if one.forward_us_p50 > 0 else 0.0
    size = (1 + best.parameters) / (1 + one.parameter_count)
    memory = best.peak_bytes / one.peak_bytes if one.peak_bytes > 0 else 0.0
    figures = SPEED_WEIGHT * speed + SIZE_WEIGHT * size + MEMORY_WEIGHT * memory
    return len(wish.preferred_tags & one.tags) + figures


def _reason(one: Candidate, wish: Wish, best: _Best) -> str:
    parts = []
    if wish.preferred_tags:
        has = sorted(wish.preferred_tags & one.tags)
        names = f" ({', '.join(has)})" if has else ""
        parts.append(f"{len(has)} of {len(wish.preferred_tags)} preferred tags{names}")
    if one.forward_us_p50 > 0:
        parts.append(f"forward {one.forward_us_p50:.3g} us, {one.forward_us_p50 / best.forward_us:.3g}x the fastest")
    else:
        parts.append("forward time not measured")
    parts.append(f"{one.parameter_count} parameters, fewest {best.parameters}")
    parts.append(f"peak {one.peak_bytes} bytes" if one.peak_bytes > 0 else "peak not measured")
    return "; ".join(parts)
