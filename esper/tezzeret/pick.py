"""Decide which pipeline a design is worth, from what waits, what the design promises and what a pipeline takes."""

from collections.abc import Mapping
from dataclasses import dataclass

CHEAPEST_FIRST = ("fast", "standard", "aggressive")


@dataclass(frozen=True, slots=True)
class Load:
    """What the forge is busy with. `queued` orders wait for `workers` workers."""

    queued: int
    workers: int


@dataclass(frozen=True, slots=True)
class Pipelines:
    """What is known of pipelines. `seconds`: the usual wall time of one compilation, of those that were measured.

    `refused`: pipeline -> why it cannot be had (its target, its tools, or it failed for this design).
    """

    seconds: Mapping[str, float]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PickOptions:
    """`worth`: least value of a design for a pipeline, from 0 (nobody asked) to 1 (kept wherever it was tried)."""

    worth: Mapping[str, float]
    most_waiting_s: float = 30.0


DEFAULTS = PickOptions(worth={"fast": 0.0, "standard": 0.3, "aggressive": 0.8})


def pick_pipeline(
    load: Load, value: float, deadline_s: float, pipelines: Pipelines, options: PickOptions = DEFAULTS
) -> tuple[str | None, str]:
    """(the pipeline, why not a dearer one), or (None, why there is none).

    The dearest pipeline that the design is worth, that ends before `deadline_s` behind what waits, and that does not
    make others wait over `most_waiting_s`. `fast` is refused by nothing but its own refusal: something must run.
    """
    reason = ""
    for name in reversed(CHEAPEST_FIRST):
        why = _why_not(name, load, value, deadline_s, pipelines, options)
        if not why:
            return name, reason or "it is the dearest there is"
        reason = reason or f"{name}: {why}"
    return None, reason


def _why_not(name: str, load: Load, value: float, deadline_s: float, pipelines: Pipelines, options: PickOptions) -> str:
    if name in pipelines.refused:
        return pipelines.refused[name]
    if name == CHEAPEST_FIRST[0]:
        return ""
    if value < options.worth[name]:
        return f"the design's value is {value:g}, and it takes {options.worth[name]:g}"
    if name not in pipelines.seconds:
        return "nobody has measured how long it takes"
    takes_s = pipelines.seconds[name]
    waits_s = load.queued / max(1, load.workers) * pipelines.seconds.get(CHEAPEST_FIRST[0], 0.0)
    if waits_s + takes_s > deadline_s:
        return f"it takes {takes_s:g} s after {waits_s:g} s of waiting, and {deadline_s:g} s are left"
    if load.queued and takes_s * load.queued / max(1, load.workers) > options.most_waiting_s:
        return f"{load.queued} orders wait, and {takes_s:g} s for each would be over {options.most_waiting_s:g} s"
    return ""
