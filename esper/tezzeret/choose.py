"""Which tile of a region to take, from what the cost model or a timer says of each. Pure.

A region's two passes share the positions of a program, because one grid serves both; each has its own warps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from esper.artifact.regions import PASSES
from esper.tezzeret.resources import Resources

# A gain below this is a tie, which standard's tile has: the model is no finer.
LEAST_GAIN = 0.05


class Tile(NamedTuple):
    """Positions of a program, and its warps in each pass, forward first."""

    rows: int
    warps: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Weighed:
    """One compiled kernel: nanoseconds of a launch at each size, `at_once` programs on a unit, why it is out."""

    direction: str
    rows: int
    warps: int
    resources: Resources | None  # None: not compiled
    times_ns: tuple[float, ...]
    at_once: int
    why_out: str


@dataclass(frozen=True, slots=True)
class Choice:
    """`by`: "model" or "timer". `seconds`: what a timer measured; `not_timed`: why one that was given did not."""

    tile: Tile
    by: str
    reason: str
    seconds: tuple[tuple[Tile, float], ...] = ()
    not_timed: str = ""


def best_first(weighed: Sequence[Weighed], standard: Tile) -> list[tuple[Tile, float]]:
    """(tile, its mean over sizes of time over the least time at that size), of tiles of which both passes may be used.

    Of equal ones standard's comes first, then the one that is nearest to it in positions and warps.
    """
    fine = [one for one in weighed if not one.why_out]
    total: dict[Tile, list[float]] = {}
    for ahead, back in product(*([one for one in fine if one.direction == name] for name in PASSES)):
        if ahead.rows == back.rows:
            times = [a + b for a, b in zip(ahead.times_ns, back.times_ns, strict=True)]
            total[Tile(ahead.rows, (ahead.warps, back.warps))] = times
    if not total:
        return []
    least = [min(times) for times in zip(*total.values(), strict=True)]
    scores = {
        tile: sum(its / best for its, best in zip(times, least, strict=True)) / len(least)
        for tile, times in total.items()
    }
    return sorted(scores.items(), key=lambda one: (round(one[1], 9), _apart(one[0], standard), one[0]))


def choose(
    ordered: Sequence[tuple[Tile, float]], standard: Tile, seconds: Mapping[Tile, float] | None = None
) -> Choice:
    """The first of `ordered`, or the fastest by `seconds` where a timer gave them; standard's, where that is a tie."""
    measured = tuple(sorted((seconds or {}).items()))
    by, figures = ("timer", dict(measured)) if measured else ("model", dict(ordered))
    best = min(measured, key=lambda one: (one[1], _apart(one[0], standard)))[0] if measured else ordered[0][0]
    if best == standard:
        return Choice(standard, by, "no other is faster", measured)
    if standard not in figures:
        return Choice(best, by, "standard's own tile may not be used", measured)
    gain = 1 - figures[best] / figures[standard]
    if gain < LEAST_GAIN:
        reason = f"the best other is faster by {gain:.1%}, which is a tie below {LEAST_GAIN:.0%}"
        return Choice(standard, by, reason, measured)
    return Choice(best, by, f"it is faster than standard's tile by {gain:.1%}", measured)


def _apart(tile: Tile, standard: Tile) -> int:
    """How often one doubles or halves to come from one to the other."""
    pairs = ((tile.rows, standard.rows), *zip(tile.warps, standard.warps, strict=True))
    return sum(abs(one.bit_length() - other.bit_length()) for one, other in pairs)
