"""Inputs of blend for tests: named cases, drawn ones, and what a right answer may differ by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from esper.ops import blend, blend_reference

from .conftest import INTERPRETED

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    channel_dim: int
    spans: tuple[tuple[int, int], ...] | None = None  # None: one slot over all channels
    convex: bool = False
    layout: str = "contiguous"

    def __str__(self) -> str:
        spans = "whole" if self.spans is None else "+".join(f"{a}:{b}" for a, b in self.spans)
        return f"{'x'.join(map(str, self.shape))}-{spans}-{'convex' if self.convex else 'residual'}-{self.layout}"

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return self.spans if self.spans is not None else ((0, self.shape[self.channel_dim]),)


CASES = [
    Case((1, 1), -1),
    Case((7, 131), -1),
    Case((7, 131), -1, convex=True),
    Case((4, 16), -1, ((0, 8), (8, 16)), convex=True),  # every channel covered
    Case((3, 5, 9), -1, ((2, 5), (0, 9), (4, 9))),  # overlapping slots
    Case((3, 5, 9), -1, ((7, 9), (1, 4)), convex=True),  # gaps, and slots out of order
    Case((2, 6, 33), 1, ((1, 3),)),
    Case((2, 6, 3, 5), 1, ((0, 2), (2, 6))),
    Case((2, 8, 3, 4), 1, ((0, 4), (2, 8)), layout="channels_last"),
    Case((2, 8, 3, 4), 1, ((0, 4), (4, 8)), convex=True, layout="channels_last"),
    Case((2, 8, 3, 4), 1, convex=True, layout="mixed"),
    Case((3, 4, 6), -1, ((1, 5),), layout="strided"),
    Case((3, 4, 6), 2, convex=True, layout="transposed"),
    Case((0, 5), -1),
    Case((3, 0, 2), 1, convex=True),
    Case((2, 3, 0), 1, ((1, 2),)),
    Case((3, 4), -1, ((2, 2), (0, 4))),  # a slot of no channels
    Case((1, 1, 5, 1), 1, layout="channels_last"),
]


@dataclass
class Inputs:
    case: Case
    host: Tensor
    seeds: list[Tensor]
    alphas: Tensor
    grad: Tensor

    def blend(self) -> Tensor:
        return blend(
            self.host,
            self.seeds,
            self.alphas,
            self.case.spans,
            channel_dim=self.case.channel_dim,
            convex=self.case.convex,
        )

    def flat(self) -> tuple[Tensor, list[Tensor], Tensor, list[int], int, bool]:
        """The registered operator's arguments."""
        bounds = [bound for pair in self.case.pairs for bound in pair]
        dim = self.case.channel_dim % self.host.ndim
        return self.host, self.seeds, self.alphas, bounds, dim, self.case.convex

    def reference(self) -> Tensor:
        return blend_reference(*self.flat())

    @property
    def leaves(self) -> list[Tensor]:
        return [self.host, *self.seeds, self.alphas]

    def double(self) -> "Inputs":
        """The same numbers in float64, with a graph of their own."""
        host, *seeds, alphas = (leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in self.leaves)
        return Inputs(self.case, host, seeds, alphas, self.grad.double())


def make(case: Case, dtype: torch.dtype = torch.float32, *, seed: int = 0, device: str = "cpu") -> Inputs:
    """Random inputs, every one requiring a gradient."""
    rng = torch.Generator().manual_seed(seed)

    def tensor(channels: int, layout: str) -> Tensor:
        shape = list(case.shape)
        shape[case.channel_dim] = channels
        return laid_out(torch.randn(shape, generator=rng, dtype=torch.float64).to(device, dtype), layout)

    channels = case.shape[case.channel_dim]
    host = tensor(channels, "channels_last" if case.layout == "mixed" else case.layout).requires_grad_()
    other = "contiguous" if case.layout == "mixed" else case.layout
    seeds = [tensor(stop - start, other).requires_grad_() for start, stop in case.pairs]
    math = torch.float64 if dtype == torch.float64 else torch.float32
    alphas = torch.rand(len(seeds), generator=rng, dtype=torch.float64).to(device, math).requires_grad_()
    return Inputs(case, host, seeds, alphas, tensor(channels, other))


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same numbers, stored another way."""
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":  # dense, but not contiguous
        return t.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "strided":  # not dense
        return torch.stack([t, torch.full_like(t, float("nan"))], dim=-1)[..., 0]
    return t.contiguous()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any number of dimensions from 1 to 4, sizes from 0, spans anywhere."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
    channel_dim = draw(st.integers(-len(shape), len(shape) - 1))
    channels = shape[channel_dim]
    convex = draw(st.booleans())
    bounds = sorted(draw(st.lists(st.integers(0, channels), min_size=2, max_size=6).filter(lambda b: len(b) % 2 == 0)))
    disjoint = list(zip(bounds[::2], bounds[1::2], strict=True))
    anywhere = st.tuples(st.integers(0, channels), st.integers(0, channels)).map(lambda p: (min(p), max(p)))
    overlapping = st.lists(anywhere, min_size=1, max_size=3)
    spans = draw(st.one_of(st.none(), st.permutations(disjoint) if convex else overlapping))
    layouts = ["contiguous", "strided", *(["transposed"] if len(shape) > 1 else [])]
    layouts += ["channels_last", "mixed"] if len(shape) == 4 else []
    return Case(shape, channel_dim, None if spans is None else tuple(spans), convex, draw(st.sampled_from(layouts)))


def assert_rounded(name: str, got: Tensor, want: Tensor, magnitude: Tensor, sum_of: int = 1) -> None:
    """`got` is `want` (float64) computed in float32, or float64, and rounded once to its own dtype.

    `magnitude` is the sum of the absolute values of what was added up; `sum_of` is how many there were.
    """
    assert got.shape == want.shape, name
    kind = torch.finfo(got.dtype)
    math = torch.finfo(torch.float64 if got.dtype == torch.float64 else torch.float32)
    smallest = kind.tiny * kind.eps  # the step between subnormals
    step = 1.0 if INTERPRETED and got.dtype == torch.bfloat16 else 0.501  # Triton's interpreter truncates to bfloat16
    bound = step * kind.eps * want.abs() + math.eps * (4 + sum_of**0.5) * magnitude + smallest
    error = (got.double() - want).abs()
    worst = (error / bound).max().item() if error.numel() else 0.0
    assert (error <= bound).all(), f"{name}: {worst:.3g} times the error of one rounding"


def magnitudes(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """Of the output, and of the gradients of host, seeds and alphas."""
    i = inputs.double()
    host, seeds, _, bounds, dim, _ = (x.detach() if isinstance(x, Tensor) else x for x in i.flat())
    seeds = [s.detach().abs() for s in seeds]
    out = blend_reference(host.abs(), seeds, torch.ones(len(seeds)).to(host), bounds, dim, False)
    grad = i.grad.abs()
    chunks = [grad.narrow(dim, a, b - a) for a, b in i.case.pairs]
    under = [host.abs().narrow(dim, a, b - a) for a, b in i.case.pairs]
    d_alphas = torch.stack([(c * (s + h)).sum() for c, s, h in zip(chunks, seeds, under, strict=True)])
    return out, [2 * grad, *chunks, d_alphas]


def assert_right(inputs: Inputs) -> None:
    """blend's value and every gradient are the float64 reference's, rounded once."""
    exact = inputs.double()
    of_out, of_gradients = magnitudes(inputs)
    out, want = inputs.blend(), exact.reference()
    assert out.dtype == inputs.host.dtype
    assert_rounded("out", out.detach(), want.detach(), of_out)
    got = torch.autograd.grad(out, inputs.leaves, inputs.grad)
    wanted = torch.autograd.grad(want, exact.leaves, exact.grad)
    names = ["d_host", *(f"d_seeds[{s}]" for s in range(len(inputs.seeds))), "d_alphas"]
    for name, leaf, g, w, m in zip(names, inputs.leaves, got, wanted, of_gradients, strict=True):
        assert g.dtype == leaf.dtype, name
        assert_rounded(name, g, w, m, sum_of=inputs.host.numel() if name == "d_alphas" else 1)


def names_of(values: Sequence[object]) -> list[str]:
    return [str(value).removeprefix("torch.") for value in values]
