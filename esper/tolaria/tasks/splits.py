"""Cut a data set into training rows and three held-out slices, and draw batches by step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.errors import InvalidConfig

Rows = tuple[Tensor, Tensor]  # inputs [N, ...], targets [N]


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts of one data set."""

    train: Rows
    held_out: dict[str, Rows]

    def batch(self, step: int, *, size: int, seed: int) -> Rows:
        """`size` training rows drawn with replacement by a generator of (seed, step)."""
        rows = torch.randint(len(self.train[0]), (size,), generator=generator_of(seed, step))
        return self.train[0][rows], self.train[1][rows]

    def slice(self, name: str, *, size: int = 256) -> list[Rows]:
        """The batches of one held-out slice, in a fixed order."""
        if name not in self.held_out:
            raise InvalidConfig(f"no held-out slice {name!r}; there are {', '.join(self.held_out)}")
        inputs, targets = self.held_out[name]
        return list(zip(inputs.split(size), targets.split(size), strict=True))


def generator_of(seed: int, step: int) -> torch.Generator:
    """A generator for one step of a run's data; torch's on the CPU heeds 32 bits of a seed and no more."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**32)


def split_rows(inputs: Tensor, targets: Tensor, *, seed: int, counts: dict[str, int]) -> Split:
    """Shuffle by `seed` and cut off the held-out `counts`; the rest is for training."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    held_out: dict[str, Rows] = {}
    start = 0
    for name, count in counts.items():
        rows = order[start : start + count]
        held_out[name] = (inputs[rows], targets[rows])
        start += count
    rest = order[start:]
    return Split((inputs[rest], targets[rest]), held_out)


def standardise(split: Split) -> Split:
    """Zero mean and unit variance per feature, by the training rows alone."""
    mean, scale = split.train[0].mean(0), split.train[0].std(0).clamp_min(1e-6)
    apply: Callable[[Rows], Rows] = lambda rows: ((rows[0] - mean) / scale, rows[1])  # noqa: E731
    return Split(apply(split.train), {name: apply(rows) for name, rows in split.held_out.items()})
