"""What is being evaluated: the compiled form, the lowering it must equal, and inputs to try both on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.artifact.agree import draw_weights
from esper.artifact.contents import Contents
from esper.artifact.script import CompiledForm
from esper.blueprint.interface import Interface
from esper.blueprint.lower import Lowered, lower

# (batch, positions): batch 1, odd and even batches, single and odd positions.
SHAPES: dict[int, tuple[tuple[int, tuple[int, ...]], ...]] = {
    0: ((1, ()), (2, ()), (5, ()), (8, ())),
    1: ((1, (6,)), (2, (1,)), (3, (7,)), (8, (4,))),
    2: ((1, (4, 6)), (2, (1, 1)), (3, (5, 7)), (8, (4, 4))),
}
# What speed and memory are measured on: a small training batch.
MEASURED: dict[int, tuple[int, tuple[int, ...]]] = {0: (64, ()), 1: (16, (32,)), 2: (16, (8, 8))}

# Largest difference from the float64 reference over the largest value of the tensor.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# A tensor's largest value counts as at least so much of the largest of all; see agree.differences.
FLOOR = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 1e-1}
# In a half type a form may be so much further off than the graph's own lowering.
LOWERING_FACTOR = 2.0
HALF = (torch.float16, torch.bfloat16)
LARGE = {torch.float64: 1e6, torch.float32: 1e4, torch.float16: 30.0, torch.bfloat16: 1e4}
TINY = {torch.float64: 1e-100, torch.float32: 1e-30, torch.float16: 1e-6, torch.bfloat16: 1e-30}
# Below the type's smallest normal number.
DENORMAL = {torch.float64: 1e-310, torch.float32: 1e-40, torch.float16: 1e-7, torch.bfloat16: 1e-39}


@dataclass(frozen=True, slots=True)
class Subject:
    """One candidate, with drawn weights (none zero) and with those it is born with."""

    contents: Contents
    form: CompiledForm
    lowered: Lowered
    exact: Lowered  # the reference, in float64
    weights: list[Tensor]
    birth: list[Tensor]

    @property
    def interface(self) -> Interface:
        return self.contents.body.interface

    @property
    def shapes(self) -> Sequence[tuple[int, tuple[int, ...]]]:
        return SHAPES[self.interface.kind.position_dims]

    def reference(self, h: Tensor, *parameters: Tensor) -> Tensor:
        """The lowering of the graph in float64."""
        return self.exact.functional(parameters, h)

    def lowering(self, h: Tensor, *parameters: Tensor) -> Tensor:
        """The lowering of the graph in the interface's type."""
        return self.lowered.functional(parameters, h)

    def input(self, batch: int, positions: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
        """Normal values of the interface's type, times `scale`; the same for the same arguments."""
        generator = torch.Generator().manual_seed(seed)
        wide = replace(self.interface, dtype=torch.float64).example(batch, *positions, generator=generator)
        return (wide * scale).to(self.interface.dtype)

    def middle(self, seed: int, scale: float = 1.0) -> Tensor:
        """An input of an odd shape."""
        batch, positions = self.shapes[2]
        return self.input(batch, positions, seed, scale)

    def measured(self) -> Tensor:
        """The input that speed and memory are measured on."""
        batch, positions = MEASURED[self.interface.kind.position_dims]
        return self.input(batch, positions, seed=0)


def prepare(contents: Contents, form: CompiledForm) -> Subject:
    """A subject of an artifact's contents. `form` is the artifact's own; tests give others."""
    body = contents.body
    lowered = lower(contents.graph, body.interface)
    exact = lower(contents.graph, replace(body.interface, dtype=torch.float64))
    weights = draw_weights(lowered, torch.Generator().manual_seed(1))
    birth = [contents.weights[name] for name in lowered.parameter_names]
    return Subject(contents, form, lowered, exact, weights, birth)


def limit_of(dtype: torch.dtype, lowered: float) -> float:
    """What a form may be off by. `lowered`: what the lowering is off by for the same call; only half types heed it.

    torch adds some of their products in the half type itself, and a gradient that nearly cancels is mostly rounding:
    neither is the form's fault. Wrong mathematics shows in float64, which every form is tried in.
    """
    return max(TOLERANCE[dtype], LOWERING_FACTOR * lowered) if dtype in HALF else TOLERANCE[dtype]
