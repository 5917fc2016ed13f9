"""When to probe fossils, and which to remove. Pure.

A host has grown around its fossils, so switching one off flatters it. A fossil without
which the model is not worse, twice in a row, is therefore surely of no use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esper.stats.paired import Paired

STRIKES = 2  # probes in a row that find no use


@dataclass(frozen=True, slots=True)
class Fossil:
    """A fossil of a run. One that was folded cannot be switched off."""

    site: str
    slot: int
    fossil_step: int
    folded: bool

    @property
    def key(self) -> str:
        return f"{self.site}/{self.slot}"


@dataclass(frozen=True, slots=True)
class Probed:
    """One probe's measurement: the run (arm) against the run without the fossil (control)."""

    probe_id: str
    site: str
    slot: int
    paired: Paired

    @property
    def key(self) -> str:
        return f"{self.site}/{self.slot}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe says of one fossil."""

    probed: Probed
    remove: bool
    reason: str


def probe_now(
    fossils: Sequence[Fossil], step: int, last_probe_step: int, every_steps: int, busy: bool
) -> tuple[list[Fossil], str]:
    """Which fossils to probe at this decision point, and why, or why none."""
    able = [fossil for fossil in fossils if not fossil.folded]
    if not every_steps:
        return [], "probing is switched off"
    if not able:
        return [], "no fossil kept as a branch"
    if busy:
        return [], "a graft is on trial, and a removal would confound its verdict"
    since = max(last_probe_step, min(fossil.fossil_step for fossil in able))
    if step < since + every_steps:
        return [], f"the next probe is due at step {since + every_steps}"
    return able, f"{len(able)} fossils have not been probed for {every_steps} steps"


def judge(probed: Probed, strikes: Mapping[str, int]) -> Finding:
    """Whether a fossil is to be removed, given how many probes in a row found no use before this one."""
    paired = probed.paired
    numbers = f"held-out gain {paired.gain:+.2%} ± {paired.gain_standard_error:.2%} over the model without it"
    if paired.gain > 0:
        return Finding(probed, False, f"{probed.key} pays: {numbers}")
    count = strikes.get(probed.key, 0) + 1
    if count < STRIKES:
        return Finding(
            probed, False, f"{probed.key} shows no use for the {_ordinal(count)} time of {STRIKES}: {numbers}"
        )
    return Finding(probed, True, f"{probed.key} shows no use in {count} probes in a row: {numbers}")


def _ordinal(count: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(count, f"{count}th")
