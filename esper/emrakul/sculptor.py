"""When to probe fossils, and which to remove. Pure.

A host has grown around its fossils, so switching one off flatters it. A fossil without
which the model is not worse, twice in a row, is therefore surely of no use. Of several
only the worst goes at a time: two that do the same work are each of no use beside the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from esper.stats.paired import Paired
from esper.stats.verdict import Rule
from esper.stats.verdict import judge as keeps

STRIKES = 2  # probes in a row that find no use
PAYS = Rule(min_gain=0.0, min_standard_errors=0.0)  # any gain at all


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
    fossils: Sequence[Fossil], step: int, last_probe_step: int, every_steps: int, hindrance: str
) -> tuple[list[Fossil], str]:
    """Which fossils to probe at this decision point, and why, or why none. `hindrance`: why nothing may be done now."""
    able = [fossil for fossil in fossils if not fossil.folded]
    if not every_steps:
        return [], "probing is switched off"
    if not able:
        return [], "no fossil kept as a branch"
    if hindrance:
        return [], hindrance
    since = max(last_probe_step, min(fossil.fossil_step for fossil in able))
    if step < since + every_steps:
        return [], f"the next probe is due at step {since + every_steps}"
    return able, f"{len(able)} fossils have not been probed for {every_steps} steps"


def is_measured(paired: Paired) -> bool:
    """Whether a probe says anything: enough examples, and losses that are numbers."""
    return paired.pairs >= 2 and all(map(math.isfinite, (paired.mean, paired.control_mean, paired.standard_error)))


def is_useless(paired: Paired) -> bool:
    """Whether a probe found no use, by the statistics that growth is judged with."""
    return is_measured(paired) and not keeps(paired, PAYS)[0]


def judge(probed: Probed, strikes: Mapping[str, int], hindrance: str = "") -> Finding:
    """Whether a fossil is to be removed, given how many probes in a row found no use before this one.

    `hindrance`: why nothing may be removed now; empty where it may.
    """
    paired = probed.paired
    numbers = f"held-out gain {paired.gain:+.2%} ± {paired.gain_standard_error:.2%} over the model without it"
    if not is_measured(paired):
        return Finding(probed, False, f"{probed.key} was not measured: {paired.pairs} pairs, {numbers}")
    if not is_useless(paired):
        return Finding(probed, False, f"{probed.key} pays: {numbers}")
    count = strikes.get(probed.key, 0) + 1
    if count < STRIKES:
        return Finding(
            probed, False, f"{probed.key} shows no use for the {_ordinal(count)} time of {STRIKES}: {numbers}"
        )
    useless = f"{probed.key} shows no use in {count} probes in a row: {numbers}"
    return Finding(probed, not hindrance, f"{useless}; it stays for now: {hindrance}" if hindrance else useless)


def one_at_a_time(findings: Sequence[Finding]) -> list[Finding]:
    """Only the worst of those to be removed goes; the others are probed again without it."""
    going = [finding for finding in findings if finding.remove]
    if len(going) < 2:
        return list(findings)
    worst = min(going, key=lambda f: (f.probed.paired.gain, f.probed.key))
    wait = f"; it stays for now: {worst.probed.key} goes first"
    return [replace(f, remove=False, reason=f.reason + wait) if f in going and f is not worst else f for f in findings]


def _ordinal(count: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(count, f"{count}th")
