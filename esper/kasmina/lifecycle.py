"""The one lifecycle of a seed: its states and the moves between them. Pure.

DORMANT > GERMINATED                          GERMINATED > LOADING | CANCELLED
LOADING > TRAINING | GRAFTING | CULLED | CANCELLED
TRAINING > GRAFTING | CULLED | CANCELLED      GRAFTING > STABILIZATION | CULLED
STABILIZATION > EVALUATING | CULLED           EVALUATING > FINE_TUNING | FOSSILIZED | CULLED
FINE_TUNING > FOSSILIZED | CULLED             FOSSILIZED > CULLED
CULLED, CANCELLED > DORMANT                   ROLLED_BACK > DORMANT
any but DORMANT > ROLLED_BACK
"""

import enum
from dataclasses import dataclass

from esper.errors import IllegalTransition


class State(enum.IntEnum):
    """Numbers are those of the proto's SeedState."""

    DORMANT = 1
    GERMINATED = 2
    LOADING = 3
    TRAINING = 4
    GRAFTING = 5
    STABILIZATION = 6
    EVALUATING = 7
    FINE_TUNING = 8
    FOSSILIZED = 9
    CULLED = 10
    CANCELLED = 11
    ROLLED_BACK = 12


_S = State
ALLOWED: dict[State, frozenset[State]] = {
    _S.DORMANT: frozenset({_S.GERMINATED}),
    _S.GERMINATED: frozenset({_S.LOADING, _S.CANCELLED, _S.ROLLED_BACK}),
    _S.LOADING: frozenset({_S.TRAINING, _S.GRAFTING, _S.CULLED, _S.CANCELLED, _S.ROLLED_BACK}),
    _S.TRAINING: frozenset({_S.GRAFTING, _S.CULLED, _S.CANCELLED, _S.ROLLED_BACK}),
    _S.GRAFTING: frozenset({_S.STABILIZATION, _S.CULLED, _S.ROLLED_BACK}),
    _S.STABILIZATION: frozenset({_S.EVALUATING, _S.CULLED, _S.ROLLED_BACK}),
    _S.EVALUATING: frozenset({_S.FINE_TUNING, _S.FOSSILIZED, _S.CULLED, _S.ROLLED_BACK}),
    _S.FINE_TUNING: frozenset({_S.FOSSILIZED, _S.CULLED, _S.ROLLED_BACK}),
    _S.FOSSILIZED: frozenset({_S.CULLED, _S.ROLLED_BACK}),
    _S.CULLED: frozenset({_S.DORMANT, _S.ROLLED_BACK}),
    _S.CANCELLED: frozenset({_S.DORMANT, _S.ROLLED_BACK}),
    _S.ROLLED_BACK: frozenset({_S.DORMANT}),
}

# The graft is in the host and the host's function depends on it.
IN_HOST = frozenset({_S.GRAFTING, _S.STABILIZATION, _S.EVALUATING, _S.FINE_TUNING, _S.FOSSILIZED})
# Between insertion and the last verdict: one graft at a time by default.
LIVE = IN_HOST - {_S.FOSSILIZED}
# Assigned, not yet in the host.
BEFORE_HOST = frozenset({_S.GERMINATED, _S.LOADING, _S.TRAINING})


@dataclass(frozen=True, slots=True)
class SeedId:
    """A site's qualified name and a slot of it."""

    site: str
    slot: int

    def __str__(self) -> str:
        return f"{self.site}/{self.slot}"


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of one seed's life."""

    seed: SeedId
    source: State
    target: State
    step: int
    reason: str
    artifact_id: str = ""


def check(seed: SeedId, source: State, target: State) -> None:
    """Raise IllegalTransition unless a seed may go from `source` to `target`."""
    if target not in ALLOWED[source]:
        allowed = ", ".join(state.name for state in sorted(ALLOWED[source]))
        raise IllegalTransition(
            f"seed {seed} is {source.name} and cannot become {target.name}; it may become {allowed}"
        )
