"""Decisions with their plans: what is done, what must hold, what it costs, how to undo it."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from esper.stats.paired import Paired
from esper.tamiyo.masks import cooldown_steps, event_flops, free_seeds
from esper.tamiyo.memory import Memory, Tracked
from esper.tamiyo.policy import Choice, Policy
from esper.tamiyo.view import RunView, SeedKey, SiteView


class Act(enum.Enum):
    """Kinds of decision; the proto's DecisionKind."""

    NONE = "none"
    ADD_SEED = "add_seed"
    REMOVE_SEED = "remove_seed"
    MODIFY = "modify"
    OPTIMIZE = "optimize"


@dataclass(frozen=True, slots=True)
class Germinate:
    event_id: str
    choices: tuple[tuple[SeedKey, Choice], ...]
    nursery_steps: int


@dataclass(frozen=True, slots=True)
class Insert:
    seed: SeedKey
    event_id: str
    ramp_steps: int


@dataclass(frozen=True, slots=True)
class Advance:
    seed: SeedKey
    to: str  # FINE_TUNING or FOSSILIZED


@dataclass(frozen=True, slots=True)
class Cull:
    seed: SeedKey
    return_to_twin: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    seed: SeedKey


Order = Germinate | Insert | Advance | Cull | Cancel


@dataclass(frozen=True, slots=True)
class Weighed:
    """One candidate and what was thought of it."""

    seed: SeedKey
    artifact_id: str
    title: str
    reason: str
    chosen: bool
    expected_reward: float | None = None
    exploration_bonus: float | None = None
    isolated_gain: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Written before anything changes."""

    steps: tuple[str, ...]
    preconditions: tuple[str, ...]
    undo: str
    parameters: int = 0
    flops: float = 0.0
    cooldown_steps: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict as it was reached."""

    seed: SeedKey
    keep: bool
    paired: Paired
    control: str
    round: int
    false_keep_rate: float
    reason: str
    confounded: bool


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision: what, why, how sure, how soon, with the orders that carry it out, each with its reason."""

    act: Act
    reason: str
    orders: tuple[tuple[Order, str], ...] = ()
    plan: Plan | None = None
    confidence: float = 1.0
    urgency: float = 0.0
    candidates: tuple[Weighed, ...] = ()
    verdict: Judged | None = None

    def __post_init__(self) -> None:
        assert self.plan is not None or not self.orders, "nothing changes without a plan"


def germinate(view: RunView, memory: Memory, policy: Policy, choices: Sequence[Choice], reason: str) -> Decided:
    """Assign the chosen kernels to free seeds of their sites and have them tried together."""
    event_id = f"event-{memory.events + 1}"
    seeds = _assign(view, choices)
    taken = {key for key, _ in seeds}
    # a former life of these seeds whose end went unseen is over
    memory.tracked = [t for t in memory.tracked if t.key not in taken]
    for key, choice in seeds:
        memory.tracked.append(_track(view, key, choice, event_id))
        tried = f"{key.site} {choice.offer.option.blueprint_id}"
        memory.tries[tried] = memory.tries.get(tried, 0) + 1
    memory.events += 1
    memory.turn += 1
    memory.last_event_step = view.step
    steps = view.scheme.nursery_steps if policy.uses_nursery else 0
    order = Germinate(event_id, tuple(seeds), steps)
    names = ", ".join(f"{choice.offer.option.title} at {key}" for key, choice in seeds)
    plan = Plan(
        steps=(f"load {len(seeds)} kernels", _trial_step(steps), "insert the best, judge it against its twin"),
        preconditions=("every seed is DORMANT", "every kernel is promoted and verifies"),
        undo="cancel the seeds: the host is not touched before one is inserted",
        parameters=max(choice.offer.option.parameter_count for _, choice in seeds),
        flops=event_flops(view, memory, steps, len(seeds)),
        cooldown_steps=cooldown_steps(view, memory),
    )
    weighed = tuple(
        Weighed(
            key,
            choice.offer.option.artifact_id,
            choice.offer.option.title,
            choice.reason,
            True,
            choice.expected_reward,
            choice.exploration_bonus,
        )
        for key, choice in seeds
    )
    return Decided(
        Act.ADD_SEED, f"{reason}; {event_id} tries {names}", ((order, reason),), plan, 0.5, 0.5, candidates=weighed
    )


def note_rollbacks(view: RunView) -> list[Decided]:
    """The governor acts by itself; the record says what it did."""
    return [
        Decided(
            Act.NONE,
            f"the governor went back to step {r.restored_step}: {r.reason}"
            + (f"; locked {', '.join(map(str, r.locked))}" if r.locked else "; no seed was on trial"),
            urgency=1.0,
        )
        for r in view.rollbacks
    ]


def _trial_step(steps: int) -> str:
    return f"try them {steps} steps in the nursery" if steps else "no trial: this policy inserts what it chose"


def _assign(view: RunView, choices: Sequence[Choice]) -> list[tuple[SeedKey, Choice]]:
    """Give each choice a free seed of its site."""
    free = {site.name: [seed.key for seed in free_seeds(view, site)] for site in view.sites}
    return [(free[choice.offer.site.name].pop(0), choice) for choice in choices]


def _track(view: RunView, key: SeedKey, choice: Choice, event_id: str) -> Tracked:
    option, site = choice.offer.option, choice.offer.site
    return Tracked(
        site=key.site,
        slot=key.slot,
        event_id=event_id,
        artifact_id=option.artifact_id,
        title=option.title,
        family=option.family,
        layer_kind=site.layer_kind,
        parameter_count=option.parameter_count,
        host_parameter_count=view.parameters,
        germinated_step=view.step,
        features=features(view, site),
    )


def features(view: RunView, site: SiteView) -> dict[str, float]:
    """What was known of site and run, by name; what was not measured is absent."""
    known = {
        "step_share": view.step / view.total_steps if view.total_steps else None,
        "train_loss": view.train_loss,
        "validation_loss": view.validation_loss,
        "validation_over_train": view.validation_loss / max(view.train_loss, 1e-12) if view.validation_loss else None,
        "site_channels": float(site.channels),
        "site_positions": float(site.positions),
        "site_parameters": float(site.parameter_count),
        **site.health,
    }
    return {name: value for name, value in known.items() if value is not None}
