"""Which of the kernels for an interface come first, and why. Pure.

In order: status, target and blueprints; tags that must and must not be there; limits; then
the score. Each preferred tag counts 1; speed, size and memory together count at most 1, as
shares of the best admitted kernel:

    score = preferred tags it has
          + 0.5 * fastest / its forward time
          + 0.3 * (1 + fewest parameters) / (1 + its parameters)
          + 0.2 * lowest peak / its peak bytes
          + interest weight of the request * its interest

What was not measured adds nothing, and is not within any limit; where no kernel has a figure
that is limited, `unmeasured` says so. Ties go to the lower artifact id, so equal libraries
give equal answers. Every kernel of the interface is looked at, column by column, so the cost
is bounded by their number alone and not by what is asked.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esper.urza.codec import Scope, Wish
from esper.urza.columns import Columns, Mask, Readings
from esper.urza.pedigree import Members

# Of each figure that may be limited: its name for people, and the request's field.
_LIMITED = {
    "forward_us_p50": ("forward time", "max_forward_us"),
    "peak_bytes": ("peak", "max_peak_bytes"),
    "risk": ("risk", "max_risk"),
}
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


def rank(table: Columns, scope: Scope, wish: Wish, families: Collection[Members] = ()) -> list[Ranked]:
    """The best `wish.limit` of those in `scope` that satisfy `wish`, best first.

    Each of `families` says of each revision whether a blueprint it created is of it; a kernel's must be of all.
    """
    rows = np.flatnonzero(_in_scope(table, scope, families) & _admitted(table, wish))
    if not len(rows):
        return []
    best = _Best(
        forward_us=_lowest(table["forward_us_p50"][rows]),
        parameters=int(table["parameter_count"][rows].min()),
        peak_bytes=int(_lowest(table["peak_bytes"][rows])),
    )
    scores = _scores(table, rows, wish, best)
    first = _highest(scores, wish.limit)
    places = zip(table.readings(rows[first]), scores[first].tolist(), strict=True)
    tag_lines = _TagLines(wish.preferred_tags)
    return [Ranked(one.artifact_id, score, _reason(one, wish, best, tag_lines[one.tags])) for one, score in places]


def unmeasured(table: Columns, scope: Scope, wish: Wish, families: Collection[Members] = ()) -> str:
    """Why `wish` cannot be met by any kernel in `scope`: limits on figures that none has. Empty: none are such."""
    rows = _in_scope(table, scope, families)
    if not rows.any():
        return ""
    none_has = [figure for figure, limit in _limits(wish) if limit and not (table[figure][rows] > 0).any()]
    if not none_has:
        return ""
    words, limits = (" and ".join(names) for names in zip(*(_LIMITED[one] for one in none_has), strict=True))
    return f"none of the kernels in question ({int(rows.sum())}) has a measured {words}; search without {limits}"


def _limits(wish: Wish) -> tuple[tuple[str, float], ...]:
    """Highest readings, by column; 0: no limit."""
    return (
        ("forward_us_p50", wish.max_forward_us),
        ("peak_bytes", wish.max_peak_bytes),
        ("risk", wish.max_risk),
    )


def _in_scope(table: Columns, scope: Scope, families: Collection[Members]) -> Mask:
    found: Mask = table["status"] == scope.status
    if scope.target:
        found &= table["target"] == scope.target
    for family in families:
        found &= family[table["blueprint"]]
    return found


def _admitted(table: Columns, wish: Wish) -> Mask:
    found = np.ones(len(table), bool)
    for figure, limit in _limits(wish):
        if limit:
            found &= (table[figure] > 0) & (table[figure] <= limit)
    if wish.max_parameters:
        found &= table["parameter_count"] <= wish.max_parameters
    if wish.min_interest:
        found &= table["interest"] >= wish.min_interest
    if wish.required_tags or wish.excluded_tags:
        fit = table.tags.counts(wish.required_tags) == len(wish.required_tags)
        fit &= table.tags.counts(wish.excluded_tags) == 0
        found &= fit[table["tag_set"]]
    return found


def _lowest(readings: npt.NDArray[Any]) -> float:
    measured = readings[readings > 0]
    return float(measured.min()) if len(measured) else 0.0


def _scores(table: Columns, rows: npt.NDArray[np.intp], wish: Wish, best: _Best) -> npt.NDArray[np.float64]:
    speed = _share(best.forward_us, table["forward_us_p50"][rows])
    size = (1.0 + best.parameters) / (1.0 + table["parameter_count"][rows])
    memory = _share(best.peak_bytes, table["peak_bytes"][rows])
    scores: npt.NDArray[np.float64] = SPEED_WEIGHT * speed + SIZE_WEIGHT * size + MEMORY_WEIGHT * memory
    if wish.preferred_tags:
        scores += table.tags.counts(wish.preferred_tags)[table["tag_set"][rows]]
    if wish.interest_weight:
        scores += wish.interest_weight * table["interest"][rows]
    return scores


def _share(best: float, readings: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Of the best in each reading; 0 for what was not measured."""
    shares = np.zeros(len(readings))
    np.divide(best, readings, out=shares, where=readings > 0)
    return shares


def _highest(scores: npt.NDArray[np.float64], limit: int) -> npt.NDArray[np.intp]:
    """Places of the highest scores, highest first; of equal ones the earlier, which has the lower id."""
    places = np.arange(len(scores))
    if limit < len(scores):
        last = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        above, level = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
        places = np.concatenate([above, level[: limit - len(above)]])
    return places[np.lexsort((places, -scores[places]))]


class _TagLines(dict[frozenset[str], list[str]]):
    """What a reason says of preferred tags, by the set a kernel has; kernels share few sets."""

    def __init__(self, preferred: frozenset[str]) -> None:
        self._preferred = preferred

    def __missing__(self, tags: frozenset[str]) -> list[str]:
        has = sorted(self._preferred & tags)
        names = f" ({', '.join(has)})" if has else ""
        line = f"{len(has)} of {len(self._preferred)} preferred tags{names}"
        self[tags] = [line] if self._preferred else []
        return self[tags]


def _reason(one: Readings, wish: Wish, best: _Best, tag_line: list[str]) -> str:
    parts = list(tag_line)
    if one.forward_us_p50 > 0:
        parts.append(f"forward {one.forward_us_p50:.3g} us, {one.forward_us_p50 / best.forward_us:.3g}x the fastest")
    else:
        parts.append("forward time not measured")
    parts.append(f"{one.parameter_count} parameters, fewest {best.parameters}")
    parts.append(f"peak {one.peak_bytes} bytes" if one.peak_bytes > 0 else "peak not measured")
    if wish.interest_weight:
        parts.append(f"interest {one.interest:.2g}")
    if wish.max_risk:
        parts.append(f"risk {one.risk:.2g}, at most {wish.max_risk:.2g}")
    return "; ".join(parts)
