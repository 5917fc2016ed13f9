"""Where each seed of a run was, step by step, rollbacks included. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from esper.api.common.v1 import seed_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.nissa.codec import seed_name, source_of

DORMANT = int(seed_pb2.SEED_STATE_DORMANT)
FOSSILIZED = int(seed_pb2.SEED_STATE_FOSSILIZED)
CULLED = int(seed_pb2.SEED_STATE_CULLED)


@dataclass(frozen=True, slots=True)
class Stay:
    """A seed entered `state` at `step`, for `reason`."""

    state: int
    step: int
    reason: str
    artifact_id: str = ""


@dataclass(slots=True)
class Histories:
    """The stays of every seed that ever moved, oldest first; `all_seeds` has those that never did too."""

    all_seeds: list[str] = field(default_factory=list)
    stays: dict[str, list[Stay]] = field(default_factory=dict)

    def begin(self, hello: trainer_pb2.Hello) -> None:
        """Take the seeds a run announces; what is known of their past stays."""
        self.all_seeds = [f"{site.name}/{slot}" for site in hello.sites for slot in range(site.slots)]

    def move(self, transition: seed_pb2.SeedTransition) -> None:
        """Take one step of a seed's life."""
        stays = self.stays.setdefault(seed_name(transition.seed), [])
        if not stays and source_of(transition) != DORMANT:  # its past was not heard
            stays.append(Stay(source_of(transition), 0, ""))
        stays.append(Stay(int(transition.to), transition.step, transition.reason, transition.artifact_id))

    def roll_back(self, rollback: state_pb2.Rollback) -> None:
        """Every seed is again where it was at the restored step; what came after did not happen."""
        for seed, stays in self.stays.items():
            self.stays[seed] = [stay for stay in stays if stay.step <= rollback.restored_step]

    def now(self, seed: str) -> Stay:
        """Where a seed is."""
        stays = self.stays.get(seed)
        return stays[-1] if stays else Stay(DORMANT, 0, "")

    def counts(self) -> Counter[int]:
        """Seeds by state."""
        return Counter(self.now(seed).state for seed in self.known())

    def known(self) -> Iterable[str]:
        """Every seed, announced or heard of, in that order."""
        return dict.fromkeys((*self.all_seeds, *self.stays))
