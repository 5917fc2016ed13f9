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
from esper.tamiyo.masks import free_seeds, may_begin, may_carry, wait_for_stock
from esper.tamiyo.memory import Memory
from esper.tamiyo.policies import policy_named
from esper.tamiyo.policy import Offer, Policy, Situation
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
    allowed, why = may_begin(view, memory)
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
    room = {site.name: _room(view, len(free_seeds(view, site))) for site in view.sites}
    choices = [c for c in policy.choose(situation, room) if room[c.offer.site.name] > 0]
    if not choices:
        return Decided(
            Act.NONE, f"{reason}, but there is nothing to try: {refused or 'the policy takes none of the offers'}"
        )
    return actions.germinate(view, memory, policy, choices, reason)


def _offers(view: RunView, options: Mapping[str, Sequence[Option]], memory: Memory) -> tuple[list[Offer], str]:
    """What may be tried, and why the first thing that may not may not."""
    offers, refused = [], ""
    for site in view.sites:
        found = options.get(site.interface_key, ())
        if not found:
            refused = refused or f"the library has no promoted kernel for {site.name} ({site.interface_key}) yet"
        if not free_seeds(view, site):
            refused = refused or f"{site.name} has no free seed"
            continue
        for option in found:
            fits, why = may_carry(view, memory, site, option)
            if fits:
                offers.append(Offer(site, option))
            else:
                refused = refused or why
    return offers, refused


def _room(view: RunView, free: int) -> int:
    wanted = view.scheme.candidates_per_site
    return min(free, wanted) if wanted else free
