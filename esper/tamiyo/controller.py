"""Answer one decision point. Pure: packet, library and experience go in, decisions and the next memory come out.

Order: what ended is reported; trials and verdicts that came back are acted on; only
then, if nothing is under way, may a new event begin.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from esper.tamiyo import actions
from esper.tamiyo.actions import Act, Decided
from esper.tamiyo.ends import Ended, collect_ends
from esper.tamiyo.masks import MAX_CANDIDATES, affordable, free_seeds, may_begin, may_carry, wait_for_stock
from esper.tamiyo.memory import Memory
from esper.tamiyo.policies import policy_named
from esper.tamiyo.policy import Choice, Offer, Policy, Situation
from esper.tamiyo.trials import act_on_trials
from esper.tamiyo.verdicts import act_on_verdicts
from esper.tamiyo.view import Experience, Option, RunView, Stock

_REMEMBERED_LOSSES = 20


@dataclass(slots=True)
class Answer:
    """What a controller says to one decision point."""

    decisions: list[Decided]
    memory: Memory
    ended: list[Ended] = field(default_factory=list)


def decide(view: RunView, stock: Stock, experience: Sequence[Experience], memory: Memory) -> Answer:
    """Decide. `stock` is what the library has for this run's sites; `memory` is consumed and returned."""
    policy = policy_named(view.scheme.policy)
    memory.losses = [*memory.losses, (view.step, view.train_loss)][-_REMEMBERED_LOSSES:]
    if not memory.host_step_flops and view.step:
        memory.host_step_flops = view.train_flops / view.step
    ended = collect_ends(view, memory)
    decisions = actions.note_rollbacks(view)
    decisions += act_on_trials(view, memory, policy)
    decisions += act_on_verdicts(view, memory, policy)
    if not decisions:
        decisions.append(_begin(view, stock, experience, memory, policy))
    return Answer(decisions, memory, ended)


def _begin(
    view: RunView,
    stock: Stock,
    experience: Sequence[Experience],
    memory: Memory,
    policy: Policy,
) -> Decided:
    """Begin a growth event, or say why not."""
    nursery_steps = view.scheme.nursery_steps if policy.uses_nursery else 0
    allowed, why = may_begin(view, memory, nursery_steps)
    if not allowed:
        return Decided(Act.NONE, why)
    waiting, why = wait_for_stock(view, stock)
    if waiting:
        return Decided(Act.NONE, why)
    offers, refused = _offers(view, stock.options, memory)
    rng = random.Random(f"{view.random_seed}/{view.sequence}")
    situation = Situation(view, memory, tuple(offers), tuple(experience), rng)
    now, reason = policy.timing(situation)
    if not now:
        return Decided(Act.NONE, reason)
    room = _room(view)
    most = min(MAX_CANDIDATES, affordable(view, memory, nursery_steps))
    choices = _in_bounds(policy.choose(situation, room), offers, room, most, memory.turn)
    if not choices:
        return Decided(
            Act.NONE, f"{reason}, but there is nothing to try: {refused or 'the policy takes none of the offers'}"
        )
    if policy.uses_nursery and (why := _does_not_pay(view, choices)):
        return Decided(Act.NONE, why)
    return actions.germinate(view, memory, policy, choices, reason)


def _in_bounds(
    choices: Sequence[Choice], offers: Sequence[Offer], room: Mapping[str, int], most: int, turn: int
) -> list[Choice]:
    """The policy's choices that are among the offers, within the room of their sites, and `most` in all.

    Where there are too many, every site keeps its first ones; which sites do without takes turns.
    """
    known = {(o.site.name, o.option.artifact_id) for o in offers}
    by_site: dict[str, list[Choice]] = {}
    for choice in choices:
        identity = choice.offer.site.name, choice.offer.option.artifact_id
        taken = by_site.setdefault(identity[0], [])
        if identity in known and len(taken) < room[identity[0]]:
            known.discard(identity)
            taken.append(choice)
    if sum(map(len, by_site.values())) > most:
        first = turn * most % len(by_site)
        sites = [*by_site.values()][first:] + [*by_site.values()][:first]
        ranks = max(map(len, sites))
        kept = [site[rank] for rank in range(ranks) for site in sites if rank < len(site)][:most]
        return [c for c in choices if any(c is k for k in kept)]
    return [choice for site in by_site.values() for choice in site]


def _does_not_pay(view: RunView, choices: Sequence[Choice]) -> str:
    """Why an event is not worth its cost; "" where something unknown is among the choices, or a gain expected."""
    expected = [c.expected_reward + (c.exploration_bonus or 0.0) for c in choices if c.expected_reward is not None]
    least = view.scheme.rule.min_gain
    if len(expected) < len(choices) or max(expected) > least:
        return ""
    return (
        f"the best expected gain is {max(expected):+.2%}; a gain of {least:.1%} or less is not kept, so no event pays"
    )


def _offers(view: RunView, options: Mapping[str, Sequence[Option]], memory: Memory) -> tuple[list[Offer], str]:
    """What may be tried, and why the first thing that may not may not."""
    offers, refused = [], ""
    for site in view.sites:
        # the library answers in any order; decisions must not depend on it
        found = sorted(options.get(site.interface_key, ()), key=lambda option: option.artifact_id)
        if not found:
            refused = refused or f"the library has no promoted kernel for {site.name} ({site.interface_key}) yet"
        if not free_seeds(view, site):
            refused = refused or f"{site.name} has no free seed"
            continue
        for option in found:
            fits, why = may_carry(view, memory, site, option, options)
            if fits:
                offers.append(Offer(site, option))
            else:
                refused = refused or why
    return offers, refused


def _room(view: RunView) -> dict[str, int]:
    """How many kernels may be tried at each site."""
    free = {site.name: len(free_seeds(view, site)) for site in view.sites}
    wanted = view.scheme.candidates_per_site
    return {name: min(count, wanted) if wanted else count for name, count in free.items()}
