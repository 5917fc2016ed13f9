"""The port every policy fills: when an event begins, and with which kernels at which sites.

Masks, budgets, the trial's outcome and verdicts are the controller's, the same for all.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from esper.tamiyo.memory import Memory
from esper.tamiyo.view import Experience, Option, RunView, SiteView


@dataclass(frozen=True, slots=True)
class Offer:
    """One kernel at one site that no mask forbids."""

    site: SiteView
    option: Option


@dataclass(frozen=True, slots=True)
class Choice:
    """An offer a policy takes, and what it expects of it."""

    offer: Offer
    reason: str
    expected_reward: float | None = None
    exploration_bonus: float | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """All a policy may look at."""

    view: RunView
    memory: Memory
    offers: tuple[Offer, ...]
    experience: tuple[Experience, ...]
    rng: random.Random

    def by_site(self) -> dict[str, list[Offer]]:
        found: dict[str, list[Offer]] = {}
        for offer in self.offers:
            found.setdefault(offer.site.name, []).append(offer)
        return found


class Policy(Protocol):
    """Pure: the same situation gives the same answer."""

    name: str
    description: str
    uses_nursery: bool  # candidates are tried and grafts judged; otherwise the choice is inserted and kept

    def timing(self, situation: Situation) -> tuple[bool, str]:
        """Begin an event now? With the reason."""
        ...

    def choose(self, situation: Situation, room: Mapping[str, int]) -> Sequence[Choice]:
        """What to try: at most `room[site]` kernels per site, different ones. Empty: nothing is worth it."""
        ...


def experience_of(situation: Situation, offer: Offer) -> Experience | None:
    """Experience with this kind of graft on this task, else with its whole family on this task; None without any."""
    task = situation.view.task_name
    rows = [e for e in situation.experience if e.task_name == task and e.layer_kind == offer.site.layer_kind]
    exact = [e for e in rows if e.title == offer.option.title]
    return _pooled(exact or [e for e in rows if e.family == offer.option.family])


def _pooled(rows: Sequence[Experience]) -> Experience | None:
    """Several rows as one: counts added, means weighted by them."""
    if len(rows) < 2:
        return next(iter(rows), None)
    tried, judged = sum(e.tried for e in rows), sum(e.judged for e in rows)
    return replace(
        rows[0],
        title="",
        tried=tried,
        mean_isolated_gain=math.fsum(e.mean_isolated_gain * e.tried for e in rows) / max(tried, 1),
        judged=judged,
        mean_gain=math.fsum(e.mean_gain * e.judged for e in rows) / max(judged, 1),
    )
