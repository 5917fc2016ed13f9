"""blend against torch's own expressions.

    python -m bench.ops.bench_blend [--gpu] [--quick]     one table
    python -m pytest bench/ops/bench_blend.py             the same rows under pytest-benchmark

Rows are interleaved and given as a ratio to torch.lerp of the same run; `lerp again` is the A/A control: what it
differs from 1 by is noise. On CPU one thread is used and its own time is counted, not the wall's. `step` is forward and
backward, `backward` the backward alone, to host and seeds; with `+alpha`, to alphas too. `auto` is what a caller gets;
a backend's name is that backend, forced. What disagrees with the reference is not timed.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from esper.ops import backends, blend, blend_reference

SIZES = {"64": 64, "16K": 1 << 14, "64K": 1 << 16, "256K": 1 << 18, "16M": 1 << 24}
MODES = ("forward", "step", "step+alpha", "backward", "backward+alpha")
DTYPES = (torch.float32, torch.bfloat16)
CHANNELS = 64


@dataclass(frozen=True)
class Setting:
    size: str
    dtype: torch.dtype
    mode: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.size} {str(self.dtype).removeprefix('torch.')} {self.mode}"


@dataclass(frozen=True)
class Row:
    """One expression to time, under the backend it is forced to ("auto": none)."""

    call: Callable[[], object]
    backend: str = "auto"

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with backends.forced(self.backend):
            self.call()
            yield


def rows(setting: Setting) -> dict[str, Row]:
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
        "lerp": (lerp, "auto"),
        "lerp again": (lerp, "auto"),
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
                made[name] = Row(_timed_part(setting.mode, forward, leaves, grad), backend)
    return made


def _timed_part(mode: str, forward: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
    if mode == "forward":
        return forward
    if mode.startswith("step"):
        return lambda: torch.autograd.grad(forward(), leaves, grad)
    out = forward()
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def microseconds(setting: Setting, repeats: int) -> dict[str, float]:
    """The median of each row, interleaved."""
    torch.set_num_threads(1)
    every = rows(setting)
    inner = max(1, min(200, (1 << 21) // SIZES[setting.size]))
    clock = time.thread_time_ns if setting.device == "cpu" else time.perf_counter_ns
    wait = torch.cuda.synchronize if setting.device == "cuda" else (lambda: None)
    taken: dict[str, list[float]] = {name: [] for name in every}
    with torch.set_grad_enabled(setting.mode != "forward"):
        for _ in range(repeats):
            for name, row in every.items():
                with row.ready():
                    wait()
                    start = clock()
                    for _ in range(inner):
                        row.call()
                    wait()
                    taken[name].append((clock() - start) / inner / 1e3)
    return {name: statistics.median(samples) for name, samples in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="blend against torch's own expressions")
    parser.add_argument("--gpu", action="store_true", help="on the CUDA device")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, nothing above 256K")
    options = parser.parse_args()
    device = "cuda" if options.gpu else "cpu"
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if options.gpu else '1 CPU thread'}; us (x lerp)")
    for size in SIZES:
        if options.quick and size == "16M":
            continue
        for dtype in DTYPES:
            for mode in MODES:
                setting = Setting(size, dtype, mode, device)
                row = microseconds(setting, 5 if options.quick or size == "16M" else 25)
                cells = (f"{name} {us:.1f} ({us / row['lerp']:.2f})" for name, us in row.items())
                print(f"{setting!s:28} " + "  ".join(cells), flush=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", ["16K", "256K"])
@pytest.mark.parametrize("name", ["lerp", "addcmul", "convex auto", "residual auto"])
def test_blend(benchmark, name: str, size: str, dtype: torch.dtype, mode: str) -> None:  # type: ignore[no-untyped-def]
    setting = Setting(size, dtype, mode)
    benchmark.group = str(setting)
    torch.set_num_threads(1)
    row = rows(setting)[name]
    with torch.set_grad_enabled(mode != "forward"), row.ready():
        benchmark(row.call)


if __name__ == "__main__":
    main()
