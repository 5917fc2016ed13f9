"""Notice seeds whose life is over and say how it went: the material of field reports."""

from dataclasses import dataclass

from esper.tamiyo.memory import Memory, Tracked
from esper.tamiyo.view import RunView, SeedView

_ENDS = ("FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK")


@dataclass(frozen=True, slots=True)
class Ended:
    """One seed's life, from germination to its end."""

    tracked: Tracked
    outcome: str
    end_step: int
    reason: str


def collect_ends(view: RunView, memory: Memory) -> list[Ended]:
    """Seeds that ended since the last decision point; they are no longer tracked afterwards."""
    ended = []
    for tracked in memory.tracked:
        seed = view.seed(tracked.key)
        if seed is not None and seed.state in _ENDS and _same_life(seed, tracked):
            ended.append(Ended(tracked, seed.state, seed.state_step, seed.reason))
    gone = {id(e.tracked) for e in ended}
    memory.tracked = [t for t in memory.tracked if id(t) not in gone]
    return ended


def _same_life(seed: SeedView, tracked: Tracked) -> bool:
    same = (seed.event_id, seed.artifact_id) == (tracked.event_id, tracked.artifact_id)
    return same and seed.state_step >= tracked.germinated_step
