"""What blend is timed beside: torch's own expressions, the naive one, that one compiled. And each backend of blend."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.harness import BASELINE, CONTROL
from esper.ops import backends, blend, blend_reference

SIZES = {"64": 64, "16K": 1 << 14, "64K": 1 << 16, "256K": 1 << 18, "16M": 1 << 24, "64M": 1 << 26}
MODES = ("forward", "step", "step+alpha", "backward", "backward+alpha")
COMPILED_MODES = ("forward", "backward", "backward+alpha")
COMPILED_FROM = {"cpu": SIZES["256K"], "cuda": SIZES["16M"]}
CHANNELS = 64
COPY, AUTO = "copy", "auto"
NAIVE = {"convex": "(1-a)h+ag", "residual": "h+ag"}
Timed = tuple[Callable[[], Tensor], str]  # a forward, and the backend it is forced to


@dataclass(frozen=True)
class Setting:
    size: str
    dtype: torch.dtype
    mode: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.size} {str(self.dtype).removeprefix('torch.')} {self.mode}"

    @property
    def elements(self) -> int:
        return SIZES[self.size]

    @property
    def compiles(self) -> bool:
        """A compilation takes seconds, so only where its result may matter."""
        return self.mode in COMPILED_MODES and self.elements >= COMPILED_FROM[self.device]


@dataclass(frozen=True)
class Expression:
    """One expression to time, under the backend it is forced to ("auto": none)."""

    call: Callable[[], object]
    backend: str = AUTO

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with backends.forced(self.backend):
            self.call()
            yield


@dataclass(frozen=True)
class Inputs:
    """What every expression of a setting reads. `grad` is the output's gradient."""

    host: Tensor
    seed: Tensor
    alphas: Tensor
    grad: Tensor

    @classmethod
    def of(cls, setting: Setting) -> "Inputs":
        torch.manual_seed(0)
        shape = (setting.elements // CHANNELS, CHANNELS)
        host, seed, grad = (torch.randn(shape, device=setting.device).to(setting.dtype) for _ in range(3))
        made = cls(host, seed, torch.tensor([0.3], device=setting.device), grad)
        for leaf in made.leaves(setting.mode):
            leaf.requires_grad_()
        return made

    def leaves(self, mode: str) -> list[Tensor]:
        if mode == "forward":
            return []
        return [self.host, self.seed, *([self.alphas] if "alpha" in mode else [])]


def naive_convex(host: Tensor, seed: Tensor, alphas: Tensor) -> Tensor:
    a = alphas.to(host.dtype)
    return (1 - a) * host + a * seed


def naive_residual(host: Tensor, seed: Tensor, alphas: Tensor) -> Tensor:
    return host + alphas.to(host.dtype) * seed


@functools.lru_cache(maxsize=2)
def compiled(form: str, setting: Setting) -> Callable[..., Tensor]:  # noqa: ARG001  one for each setting
    """The naive expression under torch.compile. fullgraph: what cannot be compiled fails; it does not run eagerly."""
    naive = naive_convex if form == "convex" else naive_residual
    return torch.compile(naive, fullgraph=True, dynamic=False)


def expressions(setting: Setting) -> dict[str, Expression]:
    """Every expression of the setting, each held to the reference once."""
    inputs = Inputs.of(setting)
    host, seed, alphas, grad = inputs.host, inputs.seed, inputs.alphas, inputs.grad
    leaves = inputs.leaves(setting.mode)
    made = {}
    for form in ("convex", "residual"):
        want = blend_reference(host, [seed], alphas, [0, CHANNELS], 1, form == "convex").detach()
        for name, (forward, backend) in _of_form(form, setting, inputs).items():
            with backends.forced(backend):
                torch.testing.assert_close(forward().detach(), want, rtol=2e-2, atol=2e-2)
                made[name] = Expression(_timed_part(setting.mode, forward, leaves, grad), backend)
    whole = torch.randn(setting.elements, device=setting.device).to(setting.dtype)
    target = torch.empty_like(whole)
    made[COPY] = Expression(lambda: target.copy_(whole))
    return made


def _of_form(form: str, setting: Setting, inputs: Inputs) -> dict[str, Timed]:
    host, seed, alphas = inputs.host, inputs.seed, inputs.alphas
    function = torch.lerp if form == "convex" else torch.addcmul
    naive = naive_convex if form == "convex" else naive_residual
    if setting.dtype == torch.float32:
        torchs: Callable[[], Tensor] = lambda: function(host, seed, alphas)  # noqa: E731
    else:
        torchs = lambda: function(host, seed, alphas.to(setting.dtype))  # noqa: E731

    def ours() -> Tensor:
        return blend(host, [seed], alphas, channel_dim=1, convex=form == "convex")

    forced = [backend for backend in ("cpp", "cuda", "triton") if not backends.why_not(backend, setting.device)]
    made: dict[str, Timed] = {BASELINE: (torchs, AUTO), CONTROL: (torchs, AUTO)}
    if form == "residual":
        made = {"addcmul": (torchs, AUTO)}
    made[NAIVE[form]] = (lambda: naive(host, seed, alphas), AUTO)
    if setting.compiles:
        program = compiled(form, setting)
        made[f"compiled {NAIVE[form]}"] = (lambda: program(host, seed, alphas), AUTO)
    return made | {f"{form} {backend}": (ours, backend) for backend in (AUTO, *forced)}


def _timed_part(mode: str, forward: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
    if mode == "forward":
        return forward
    if mode.startswith("step"):
        return lambda: torch.autograd.grad(forward(), leaves, grad)
    out = forward()
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)
