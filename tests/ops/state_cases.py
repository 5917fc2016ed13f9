"""Inputs of advance_state for tests: drawn tables, and what a step makes of them by the host's own formula."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from esper.kasmina.schedule import ramp
from esper.ops import advance_state

NAMES = ("alphas", "ages", "step", "states", "ramp_begins", "ramp_steps")
FAR = 1 << 45  # a step that 32 bits do not hold


@dataclass(frozen=True)
class Table:
    """The op's arguments."""

    alphas: Tensor
    ages: Tensor
    step: Tensor
    states: Tensor
    ramp_begins: Tensor
    ramp_steps: Tensor
    ramping: int = 1 << 5
    counting: int = 0b1111100000

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.alphas, self.ages, self.step, self.states, self.ramp_begins, self.ramp_steps

    def flat(self) -> tuple[Tensor | int, ...]:
        """The registered operator's arguments."""
        return *self.tensors, self.ramping, self.counting

    def clone(self) -> "Table":
        return Table(*(t.clone() for t in self.tensors), self.ramping, self.counting)

    def to(self, device: str) -> "Table":
        return Table(*(t.to(device) for t in self.tensors), self.ramping, self.counting)

    def advance(self) -> None:
        advance_state(*self.tensors, ramping=self.ramping, counting=self.counting)


def make(seeds: int, *, seed: int = 0) -> Table:
    """A random table around step 1000; alphas of what does not ramp are NaN."""
    rng = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (seeds,), generator=rng)

    return Table(
        torch.full((seeds,), float("nan")),
        draw(0, 500),
        torch.tensor([1000]),
        draw(0, 13).to(torch.uint8),
        draw(900, 1100),
        draw(-1, 200),
    )


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Any states, steps to 2**45, ramps of 0 steps and ramps that rest."""
    seeds = draw(st.integers(0, 9))

    def column(each: st.SearchStrategy[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(draw(st.lists(each, min_size=seeds, max_size=seeds)), dtype=dtype)

    step = draw(st.one_of(st.integers(0, 100), st.integers((1 << 31) - 2, (1 << 31) + 2), st.integers(0, FAR)))
    near = st.integers(max(0, step - 60), step + 60)
    mask = st.one_of(st.just(1 << 5), st.just(0), st.integers(0, (1 << 63) - 1))
    return Table(
        column(st.just(0), torch.float32).fill_(float("nan")),
        column(st.integers(0, FAR)),
        torch.tensor([step]),
        column(st.one_of(st.integers(1, 12), st.integers(0, 255)), torch.uint8),
        column(st.one_of(near, st.integers(0, FAR))),
        column(st.one_of(st.sampled_from([-1, 0, 1]), st.integers(-2, 60), st.integers(0, FAR))),
        draw(mask),
        draw(mask),
    )


def expected(before: Table) -> Table:
    """One step, seed by seed, by `esper.kasmina.schedule.ramp`."""
    after = replace(before, **{name: getattr(before, name).clone() for name in NAMES})
    after.step.fill_(int(before.step) + 1)
    for s, state in enumerate(before.states.tolist()):
        length = int(before.ramp_steps[s])
        if state < 63 and before.ramping >> state & 1 and length >= 0:
            after.alphas[s].fill_(ramp(int(after.step), int(before.ramp_begins[s]), length))
        if state < 63 and before.counting >> state & 1:
            after.ages[s] += 1
    return after


def assert_same(got: Table, want: Table) -> None:
    """Bit for bit, NaN included."""
    for name, ours, theirs in zip(NAMES, got.tensors, want.tensors, strict=True):
        bits = torch.int32 if ours.dtype == torch.float32 else ours.dtype
        assert torch.equal(ours.view(bits), theirs.view(bits)), name
