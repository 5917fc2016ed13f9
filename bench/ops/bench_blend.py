"""blend against torch's own expressions.

Every expression is a ratio to torch.lerp of the same run; one that disagrees with the reference is
not timed. On CPU one thread is used and its own time is counted, not the wall's. `step` is forward
and backward, `backward` the backward alone, to host and seeds; with `+alpha`, to alphas too. `auto`
is what a caller gets; a backend's name is that backend, forced. `in place` is blend_, see bench/ops/blend_in_place.py.

Targets are of `convex auto`. On CPU: `ratio` of the forward from 64K elements on, below that `added_us`
over lerp, and `naive_ratio` of the backward with alpha to that of (1-a)h+ag. On a GPU:
`copy_share`, the least traffic an op can do per second to that of a copy, at 64 MB.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bench.harness import (
    BASELINE,
    CONTROL,
    Arms,
    Comparison,
    Effort,
    compare,
    cuda_clock,
    one_thread,
    thread_clock,
)
from bench.ops.blend_in_place import in_place_rows
from bench.registry import Options
from bench.row import Row, Target, make_row
from esper.ops import backends, blend, blend_reference

SIZES = {"64": 64, "16K": 1 << 14, "64K": 1 << 16, "256K": 1 << 18, "16M": 1 << 24}
MODES = ("forward", "step", "step+alpha", "backward", "backward+alpha")
DTYPES = (torch.float32, torch.bfloat16)
CHANNELS = 64
GPU = True
NAME, AUTO, NAIVE, COPY = "blend", "convex auto", "(1-a)h+ag", "copy"
FASTER, ADDED_US, NAIVE_RATIO = Target(1.0), Target(1.0), Target(0.5)
COPY_SHARE = Target(0.9, at_least=True)
# How often each tensor of the output's size must be read or written, to a copy's two times.
TRAFFIC = {"forward": 3 / 2, "backward": 3 / 2, "backward+alpha": 5 / 2}
EFFORT, LARGE_EFFORT = Effort(rounds=3, turns=12, block_s=0.002), Effort(rounds=2, turns=5, block_s=0.0)


@dataclass(frozen=True)
class Setting:
    size: str
    dtype: torch.dtype
    mode: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.size} {str(self.dtype).removeprefix('torch.')} {self.mode}"


@dataclass(frozen=True)
class Expression:
    """One expression to time, under the backend it is forced to ("auto": none)."""

    call: Callable[[], object]
    backend: str = "auto"

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with backends.forced(self.backend):
            self.call()
            yield


def expressions(setting: Setting) -> dict[str, Expression]:
    """Every expression of the setting, checked once."""
    torch.manual_seed(0)
    shape = (SIZES[setting.size] // CHANNELS, CHANNELS)
    host, seed, grad = (torch.randn(shape, device=setting.device).to(setting.dtype) for _ in range(3))
    alphas = torch.tensor([0.3], device=setting.device)
    leaves = [] if setting.mode == "forward" else [host, seed, *([alphas] if "alpha" in setting.mode else [])]
    for leaf in leaves:
        leaf.requires_grad_()

    exact = setting.dtype == torch.float32

    def a() -> Tensor:
        return alphas.to(setting.dtype)

    def ours(convex: bool) -> Callable[[], Tensor]:
        return lambda: blend(host, [seed], alphas, channel_dim=1, convex=convex)

    forced = [backend for backend in ("cpp", "cuda", "triton") if not backends.why_not(backend, setting.device)]
    lerp = (lambda: torch.lerp(host, seed, alphas)) if exact else (lambda: torch.lerp(host, seed, a()))
    addcmul = (lambda: torch.addcmul(host, seed, alphas)) if exact else (lambda: torch.addcmul(host, seed, a()))
    convex: dict[str, tuple[Callable[[], Tensor], str]] = {
        BASELINE: (lerp, "auto"),
        CONTROL: (lerp, "auto"),
        "(1-a)h+ag": (lambda: (1 - a()) * host + a() * seed, "auto"),
        **{f"convex {backend}": (ours(True), backend) for backend in ("auto", *forced)},
    }
    residual = {
        "addcmul": (addcmul, "auto"),
        "h+ag": (lambda: host + a() * seed, "auto"),
        **{f"residual {backend}": (ours(False), backend) for backend in ("auto", *forced)},
    }
    made = {}
    for form, group in ((True, convex), (False, residual)):
        want = blend_reference(host, [seed], alphas, [0, CHANNELS], 1, form).detach()
        for name, (forward, backend) in group.items():
            with backends.forced(backend):
                torch.testing.assert_close(forward().detach(), want, rtol=2e-2, atol=2e-2)
                made[name] = Expression(_timed_part(setting.mode, forward, leaves, grad), backend)
    return made


def _timed_part(mode: str, forward: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
    if mode == "forward":
        return forward
    if mode.startswith("step"):
        return lambda: torch.autograd.grad(forward(), leaves, grad)
    out = forward()
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def rows(options: Options) -> Iterator[Row]:
    sizes = ("64", "16K") if options.quick else tuple(SIZES)
    for size in sizes:
        effort = options.effort(LARGE_EFFORT if size == "16M" else EFFORT)
        for dtype in DTYPES:
            for mode in MODES:
                setting = Setting(size, dtype, mode, options.device)
                yield from setting_rows(setting, measure(setting, effort))
            yield from in_place_rows(size, SIZES[size], dtype, options.device, effort)


def measure(setting: Setting, effort: Effort) -> Comparison:
    """Every expression of a setting, in turns."""
    made: dict[str, Expression] = {}

    def build() -> Arms:
        made.update(expressions(setting))
        arms = {name: expression.call for name, expression in made.items()}
        if setting.device == "cuda":
            whole = torch.randn(SIZES[setting.size], device="cuda").to(setting.dtype)
            target = torch.empty_like(whole)
            made[COPY] = Expression(lambda: target.copy_(whole))
            arms[COPY] = made[COPY].call
        return arms

    clock = thread_clock if setting.device == "cpu" else cuda_clock
    with torch.set_grad_enabled(setting.mode != "forward"):
        return compare(build, effort, clock, around=lambda name: made[name].ready())


def setting_rows(setting: Setting, found: Comparison) -> Iterator[Row]:
    """One row per expression, and those that have a target of their own."""
    on_cpu, elements = setting.device == "cpu", SIZES[setting.size]
    for arm in found.rounds[0][0]:
        if arm not in (BASELINE, CONTROL, COPY):
            fast = arm == AUTO and on_cpu and setting.mode == "forward" and elements >= SIZES["64K"]
            target = FASTER if fast else None
            case = f"{setting} {arm}"
            yield found.row(NAME, case, "ratio", arm=arm, against="lerp", target=target, device=setting.device)
    case = f"{setting} {AUTO}"
    if on_cpu and setting.mode == "forward" and elements < SIZES["64K"]:
        added_us = (found.median_s(AUTO) - found.median_s()) * 1e6
        yield make_row(NAME, case, "added_us", added_us, "us", target=ADDED_US)
    if on_cpu and setting.mode == "backward+alpha" and elements >= SIZES["64K"]:
        yield found.row(NAME, case, "naive_ratio", arm=AUTO, to=NAIVE, against=NAIVE, target=NAIVE_RATIO)
    if COPY in found.rounds[0][0] and setting.mode in TRAFFIC:
        share = TRAFFIC[setting.mode] * found.ratio(COPY, AUTO)
        large = elements * setting.dtype.itemsize >= 64 << 20
        against = f"copy: {found.median_s(COPY) * 1e6:.4g} us"
        target = COPY_SHARE if large else None
        yield make_row(
            NAME,
            case,
            "copy_share",
            share,
            "share",
            baseline=against,
            aa=found.interval(),
            target=target,
            device="cuda",
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", ["16K", "256K"])
@pytest.mark.parametrize("name", [BASELINE, "addcmul", "convex auto", "residual auto"])
def test_blend(benchmark, name: str, size: str, dtype: torch.dtype, mode: str) -> None:  # type: ignore[no-untyped-def]
    setting = Setting(size, dtype, mode)
    benchmark.group = str(setting)
    expression = expressions(setting)[name]
    with one_thread(), torch.set_grad_enabled(mode != "forward"), expression.ready():
        benchmark(expression.call)
