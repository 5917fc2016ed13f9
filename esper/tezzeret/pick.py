"""Decide which pipeline an order gets that leaves the choice to the forge."""

from collections.abc import Mapping
from dataclasses import dataclass

from esper.artifact.body import PIPELINES

HIGH_INTEREST = 0.7  # more of it is worth a dearer pipeline than fast
LOW_LOAD = 0.3  # less of it leaves time for the dearest
FAST, STANDARD, THOROUGH = PIPELINES[0], "standard", PIPELINES[-1]


@dataclass(frozen=True, slots=True)
class Load:
    """What the forge is busy with: `busy` of `workers` workers, and `queued` orders that wait for one."""

    queued: int
    busy: int
    workers: int

    @property
    def share(self) -> float:
        """Orders per worker; over 1 where some wait."""
        return (self.queued + self.busy) / max(1, self.workers)


def pick_pipeline(load: Load, interest: float, refused: Mapping[str, str]) -> tuple[str, str]:
    """(the pipeline, why this one).

    `interest`: 0 to 1, the blueprint's. `refused`: pipeline -> why it cannot be had for this order; each is passed
    over for the next cheaper one. fast has no cheaper one to pass it over for, and is never refused here.
    """
    dearest, reason = _dearest(load, interest)
    reasons = [reason]
    for name in reversed(PIPELINES[: PIPELINES.index(dearest) + 1]):
        if name == FAST or name not in refused:
            return name, "; ".join(reasons)
        reasons.append(f"not {name}: {refused[name]}")
    raise AssertionError("fast is the first of the pipelines")


def _dearest(load: Load, interest: float) -> tuple[str, str]:
    if interest <= HIGH_INTEREST:
        return FAST, f"interest {interest:.2f} is not over {HIGH_INTEREST:g}"
    why = f"interest {interest:.2f} is over {HIGH_INTEREST:g}"
    if load.share < LOW_LOAD:
        return THOROUGH, f"{why} and load {load.share:.0%} below {LOW_LOAD:.0%}"
    return STANDARD, f"{why} and load {load.share:.0%} not below {LOW_LOAD:.0%}"
