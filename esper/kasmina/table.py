"""The seed table: one structure of arrays per model, on the model's device, owned by the session.

Decisions read the records on the host side; kernels read the tensors. The table
writes both, so a forward or a step never copies from the device to learn a state.
"""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from esper.errors import NotFound
from esper.host.graft import Strategy
from esper.kasmina.lifecycle import SeedId, State, Transition, check


@dataclass(slots=True)
class Seed:
    """What the host side knows of one seed. Written by SeedTable and the executor only."""

    id: SeedId
    index: int
    state: State = State.DORMANT
    state_step: int = 0
    alpha: float = 0.0
    artifact_id: str = ""
    blueprint_id: str = ""
    title: str = ""
    family: str = ""
    event_id: str = ""
    parameter_count: int = 0
    span: tuple[int, int] | None = None
    strategy: Strategy = Strategy.RESIDUAL
    ramp_steps: int = 0
    inserted_step: int = 0
    embargo_until_step: int = 0
    errors: int = 0
    folded: bool = False
    frozen: bool = False  # a fossil that no longer learns
    held: bool = False  # alpha was set by hand, and its ramp rests
    reason: str = ""

    def __copy__(self) -> "Seed":  # the general way takes ten times as long, and rollback points copy every seed
        return Seed(*_FIELDS(self))

    def clear(self) -> None:
        """Forget what it carried; its embargo, errors and reason stay."""
        self.artifact_id = self.blueprint_id = self.title = self.family = self.event_id = ""
        self.parameter_count = self.ramp_steps = self.inserted_step = 0
        self.alpha = 0.0
        self.span = None
        self.strategy = Strategy.RESIDUAL
        self.folded = self.frozen = self.held = False


_FIELDS = operator.attrgetter(*(field.name for field in fields(Seed)))


@dataclass(slots=True)
class StateLayout:
    """Device tensors over seeds [S]; slices of it are a site's `state_layout`."""

    lifecycle_states: Tensor  # uint8, numbers of State
    alpha_blend: Tensor  # float32
    state_steps: Tensor  # int64, step at which the state was entered
    error_counts: Tensor  # int32

    @classmethod
    def make(cls, seeds: int, device: torch.device) -> "StateLayout":
        return cls(
            torch.full((seeds,), int(State.DORMANT), dtype=torch.uint8, device=device),
            torch.zeros(seeds, dtype=torch.float32, device=device),
            torch.zeros(seeds, dtype=torch.int64, device=device),
            torch.zeros(seeds, dtype=torch.int32, device=device),
        )

    def __getitem__(self, rows: slice) -> "StateLayout":
        return StateLayout(*(tensor[rows] for tensor in self._tensors()))

    def to(self, device: torch.device) -> "StateLayout":
        return StateLayout(*(tensor.to(device) for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.lifecycle_states, self.alpha_blend, self.state_steps, self.error_counts


@dataclass(slots=True)
class SeedTable:
    """All seeds of one model. Every change of state goes through `move`."""

    seeds: list[Seed]
    layout: StateLayout
    moved: list[Transition] = field(default_factory=list)  # since the last `drain`
    moves: int = 0  # ever
    _by_id: dict[SeedId, Seed] = field(default_factory=dict)

    @classmethod
    def make(cls, slots: Iterable[tuple[str, int]], device: torch.device) -> "SeedTable":
        """A table of DORMANT seeds for (site, number of slots) pairs."""
        ids = [SeedId(site, slot) for site, count in slots for slot in range(count)]
        seeds = [Seed(seed_id, index) for index, seed_id in enumerate(ids)]
        return cls(seeds, StateLayout.make(len(ids), device), _by_id={seed.id: seed for seed in seeds})

    def __getitem__(self, seed_id: SeedId) -> Seed:
        found = self._by_id.get(seed_id)
        if found is None:
            raise NotFound(
                f"no seed {seed_id}; seeds are <site>/<slot> with a site of {sorted({s.id.site for s in self.seeds})}"
            )
        return found

    def __iter__(self) -> Iterator[Seed]:
        return iter(self.seeds)

    def of_site(self, site: str) -> list[Seed]:
        return [seed for seed in self.seeds if seed.id.site == site]

    def in_states(self, states: Iterable[State]) -> list[Seed]:
        wanted = frozenset(states)
        return [seed for seed in self.seeds if seed.state in wanted]

    def move(self, seed: Seed, target: State, step: int, reason: str) -> Transition:
        """Change a seed's state. Raises IllegalTransition, and then nothing has changed."""
        check(seed.id, seed.state, target)
        transition = Transition(seed.id, seed.state, target, step, reason, seed.artifact_id)
        seed.state, seed.state_step, seed.reason = target, step, reason
        self.layout.lifecycle_states[seed.index] = int(target)
        self.layout.state_steps[seed.index] = step
        self.moved.append(transition)
        self.moves += 1
        return transition

    def set_alpha(self, seed: Seed, alpha: float) -> None:
        """Write the blend factor, host side and device."""
        seed.alpha = alpha
        self.layout.alpha_blend[seed.index].fill_(alpha)

    def charge(self, seed: Seed) -> int:
        """Count one error against a seed; returns how many it now has."""
        seed.errors += 1
        self.layout.error_counts[seed.index] = seed.errors
        return seed.errors

    def forgive(self, seed: Seed) -> None:
        """Forget a seed's errors."""
        seed.errors = 0
        self.layout.error_counts[seed.index] = 0

    def alpha_view(self, seed: Seed) -> Tensor:
        """0-dim float32 view that follows every later `set_alpha`."""
        return self.layout.alpha_blend[seed.index]

    def drain(self) -> list[Transition]:
        """Transitions since the last call, oldest first."""
        moved, self.moved = self.moved, []
        return moved

    def restore(self, seeds: Iterable[Seed]) -> None:
        """Replace records by a checkpoint's. Not a transition. Raises NotFound, and then nothing has changed."""
        for seed, saved in [(self[saved.id], saved) for saved in seeds]:
            for name in Seed.__dataclass_fields__:
                if name not in ("id", "index"):
                    setattr(seed, name, getattr(saved, name))
            self._write(seed)

    def rewrite(self, seed: Seed) -> None:
        """Write the device's entries of a seed again from its record."""
        self._write(seed)

    def mend(self, seed: Seed, state: State, step: int) -> None:
        """Replace a record that cannot be by one that can: alpha 0, no errors, `state` since `step`. Not a transition.

        What it carries stays.
        """
        seed.state, seed.state_step, seed.alpha, seed.errors = state, step, 0.0, 0
        self._write(seed)

    def to(self, device: torch.device) -> None:
        self.layout = self.layout.to(device)

    def _write(self, seed: Seed) -> None:
        self.layout.lifecycle_states[seed.index] = int(seed.state)
        self.layout.state_steps[seed.index] = seed.state_step
        self.layout.alpha_blend[seed.index].fill_(seed.alpha)
        self.layout.error_counts[seed.index] = seed.errors
