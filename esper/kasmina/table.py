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
from esper.kasmina.lifecycle import IN_HOST, SeedId, State, Transition, check
from esper.kasmina.schedule import ramp
from esper.ops import advance_state, state_mask

RAMPING = state_mask([State.GRAFTING])
COUNTING = state_mask(IN_HOST)
RESTS = -1  # in `ramp_steps`: the ramp rests


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
    """Device tensors over seeds [S]; slices of it are a site's `state_layout`. 41 bytes a seed."""

    lifecycle_states: Tensor  # uint8, numbers of State
    alpha_blend: Tensor  # float32
    state_steps: Tensor  # int64, step at which the state was entered
    error_counts: Tensor  # int32
    ramp_begins: Tensor  # int64, step at which the seed was inserted at alpha 0; 0 where it carries nothing
    ramp_steps: Tensor  # int64, steps from alpha 0 to 1; RESTS where alpha is held by hand
    ages: Tensor  # int64, steps in the host as of `step`; 0 where the seed is not in it
    step: Tensor  # int64 [1], of the whole table: the step of its last `advance`; slices share it

    @classmethod
    def make(cls, seeds: int, device: torch.device) -> "StateLayout":
        def column(dtype: torch.dtype, size: int = seeds) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return cls(
            column(torch.uint8).fill_(int(State.DORMANT)),
            column(torch.float32),
            column(torch.int64),
            column(torch.int32),
            column(torch.int64),
            column(torch.int64),
            column(torch.int64),
            column(torch.int64, 1),
        )

    def __getitem__(self, rows: slice) -> "StateLayout":
        return StateLayout(*(tensor if tensor is self.step else tensor[rows] for tensor in self.tensors()))

    def to(self, device: torch.device) -> "StateLayout":
        return StateLayout(*(tensor.to(device) for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in StateLayout.__dataclass_fields__)

    def advance(self) -> None:
        """One step for all seeds, in one launch: alphas of ramps, ages, and the step itself."""
        advance_state(
            self.alpha_blend,
            self.ages,
            self.step,
            self.lifecycle_states,
            self.ramp_begins,
            self.ramp_steps,
            ramping=RAMPING,
            counting=COUNTING,
        )


@dataclass(slots=True)
class SeedTable:
    """All seeds of one model. Every change of state goes through `move`."""

    seeds: list[Seed]
    layout: StateLayout
    moved: list[Transition] = field(default_factory=list)  # since the last `drain`
    moves: int = 0  # ever
    step: int = 0  # of the last `advance`
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
        stays = (seed.state in IN_HOST) == (target in IN_HOST)
        seed.state, seed.state_step, seed.reason = target, step, reason
        self.layout.lifecycle_states[seed.index] = int(target)
        self.layout.state_steps[seed.index] = step
        if not stays:
            self.layout.ages[seed.index].fill_(self.age(seed))
        self.moved.append(transition)
        self.moves += 1
        return transition

    def set_alpha(self, seed: Seed, alpha: float) -> None:
        """Write the blend factor, host side and device."""
        seed.alpha = alpha
        self.layout.alpha_blend[seed.index].fill_(alpha)

    def begin_ramp(self, seed: Seed, step: int, ramp_steps: int) -> None:
        """A seed is inserted at alpha 0 after `step`; its alpha is to be 1 after `ramp_steps` more."""
        self._set_step(step)
        seed.inserted_step, seed.ramp_steps, seed.held, seed.alpha = step, max(0, ramp_steps), False, 0.0
        self._write(seed)

    def hold(self, seed: Seed, alpha: float) -> None:
        """Set the blend factor by hand; the ramp rests."""
        seed.held = True
        self.layout.ramp_steps[seed.index].fill_(length_of(seed))
        self.set_alpha(seed, alpha)

    def advance(self, step: int) -> list[Seed]:
        """Move every ramp on to `step`: on the device by one launch, in the records by the same formula.

        Returns the GRAFTING seeds. While none of them ramps nothing is launched, and the device's step and ages stay
        those of the last launch.
        """
        grafting = self.in_states((State.GRAFTING,))
        ramps = [seed for seed in grafting if not seed.held]
        if ramps:
            if self.step != step - 1:  # after steps without a launch, or a return to an earlier one
                self._set_step(step - 1)
            self.layout.advance()
            self.step = step
        for seed in ramps:
            seed.alpha = ramp(step, seed.inserted_step, seed.ramp_steps)
        return grafting

    def age(self, seed: Seed) -> int:
        """Steps that a seed had been in the host for when the table was last advanced; 0 if it is not there."""
        return self.step - seed.inserted_step if seed.state in IN_HOST else 0

    def _set_step(self, step: int) -> None:
        self.step = step
        self.layout.step.fill_(step)
        for seed in self.in_states(IN_HOST):
            self.layout.ages[seed.index].fill_(self.age(seed))

    def clear(self, seed: Seed) -> None:
        """Forget what a seed carried, on both sides."""
        seed.clear()
        self._write(seed)

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
        self.layout.step.fill_(self.step)

    def rewrite(self, seed: Seed) -> None:
        """Write the device's entries of a seed again from its record, and the step that its ramp goes by."""
        self.layout.step.fill_(self.step)
        self._write(seed)

    def mend(self, seed: Seed, state: State, step: int) -> None:
        """Replace a record that cannot be by one that can: alpha 0, no errors, `state` since `step`. Not a transition.

        What it carries stays; a ramp that cannot be is over at once, and one that has not begun begins at `step`.
        """
        seed.state, seed.state_step, seed.alpha, seed.errors = state, step, 0.0, 0
        seed.ramp_steps = max(0, seed.ramp_steps)
        seed.inserted_step = seed.inserted_step if 0 <= seed.inserted_step <= step else step
        self._write(seed)

    def to(self, device: torch.device) -> None:
        self.layout = self.layout.to(device)

    def _write(self, seed: Seed) -> None:
        self.layout.lifecycle_states[seed.index] = int(seed.state)
        self.layout.state_steps[seed.index] = seed.state_step
        self.layout.alpha_blend[seed.index].fill_(seed.alpha)
        self.layout.error_counts[seed.index] = seed.errors
        self.layout.ramp_begins[seed.index].fill_(seed.inserted_step)
        self.layout.ramp_steps[seed.index].fill_(length_of(seed))
        self.layout.ages[seed.index].fill_(self.age(seed))


def length_of(seed: Seed) -> int:
    """What the device holds of a seed's ramp: its steps, or RESTS."""
    return RESTS if seed.held else seed.ramp_steps
