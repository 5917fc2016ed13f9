"""What a request to the executor must satisfy. Each raises, or changes nothing and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from esper.errors import Conflict, IllegalTransition, InvalidRequest, PreconditionFailed
from esper.host.sites import Site
from esper.kasmina.lifecycle import LIVE, State, check
from esper.kasmina.table import Seed, SeedTable

if TYPE_CHECKING:
    from esper.kasmina.executor import Assignment


def check_assignments(assignments: Sequence[Assignment], table: SeedTable, sites: Mapping[str, Site]) -> None:
    """Raise IllegalTransition for a seed that is not DORMANT.

    Raises InvalidRequest for one that is named twice, or whose span is not within its site's channels.
    """
    named = set()
    for assignment in assignments:
        check(assignment.seed, table[assignment.seed].state, State.GERMINATED)
        if assignment.seed in named:
            raise InvalidRequest(f"seed {assignment.seed} is assigned more than once; a seed carries one kernel")
        named.add(assignment.seed)
        span, site = assignment.span, sites[assignment.seed.site]
        if span is not None and not 0 <= span[0] < span[1] <= site.interface.channels:
            raise InvalidRequest(
                f"seed {assignment.seed} was given channels {span[0]}:{span[1]}; {site.name} has channels "
                f"0:{site.interface.channels}"
            )


def check_graft(seed: Seed, table: SeedTable, max_live: int) -> None:
    """Raise IllegalTransition unless a seed may be inserted, PreconditionFailed while its kernel is not loaded.

    Raises Conflict while `max_live` grafts are on trial.
    """
    check(seed.id, seed.state, State.GRAFTING)
    if seed.state is State.LOADING:
        raise PreconditionFailed(f"seed {seed.id} is LOADING; it can be inserted once its kernel is verified")
    live = table.in_states(LIVE)
    if len(live) >= max_live:
        raise Conflict(
            f"seed {live[0].id} is {live[0].state.name}; at most {max_live} graft may be judged at a time, "
            "because verdicts on several are confounded: wait for its verdict"
        )


def check_advance(seed: Seed, target: State) -> None:
    """Raise InvalidRequest for a state that means a change of the model: it has a method of its own."""
    check(seed.id, seed.state, target)
    if target not in (State.EVALUATING, State.FINE_TUNING):
        raise InvalidRequest(
            f"seed {seed.id} cannot simply become {target.name}, because that changes the model; "
            "only EVALUATING and FINE_TUNING do not"
        )


def check_alpha(seed: Seed, alpha: float) -> None:
    """Raise InvalidRequest for a factor out of bounds, PreconditionFailed unless the seed is on trial in the host."""
    if not 0 <= alpha <= 1:
        raise InvalidRequest(f"alpha must be 0 to 1, got {alpha}")
    if seed.state not in LIVE:
        raise PreconditionFailed(
            f"seed {seed.id} is {seed.state.name}; alpha can be set while it is on trial in the host"
        )


def check_fossil(seed: Seed) -> None:
    """Raise IllegalTransition for a seed that may not be a fossil yet, PreconditionFailed where its alpha is not 1."""
    check(seed.id, seed.state, State.FOSSILIZED)
    if seed.state is State.EVALUATING and seed.parameter_count:
        raise IllegalTransition(
            f"seed {seed.id} is EVALUATING and has weights to tune; it must be FINE_TUNING before it is a fossil"
        )
    if seed.alpha != 1.0:
        raise PreconditionFailed(
            f"alpha of seed {seed.id} is {seed.alpha:g} and a fossil's is 1; set it to 1 first, or cull the seed"
        )


def check_cull(seed: Seed) -> None:
    """Raise IllegalTransition unless a seed may be culled, PreconditionFailed for a fossil that was folded."""
    check(seed.id, seed.state, State.CULLED)
    if seed.state is State.FOSSILIZED and seed.folded:
        raise PreconditionFailed(
            f"fossil {seed.id} was folded into {seed.id.site}'s own weights and cannot be taken out again"
        )
