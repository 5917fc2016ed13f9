"""blend beside a copy, torch's own expressions, the naive one, and the naive one compiled.

All are timed in one run; one that disagrees with the reference is not. On CPU one thread is used and
its own time is counted, not the wall's. `step` is forward and backward, `backward` the backward alone,
to host and seeds; with `+alpha`, to alphas too. `auto` is what a caller gets; a backend's name is that
backend, forced; `in place` is blend_, see bench/ops/blend_in_place.py. Metrics, of which `vs_copy` is
better high and the others low:

    vs_lerp        time to torch.lerp's, of every expression
    vs_naive       time to that of (1-a)h+ag, or h+ag
    vs_compiled    time to that of the same under torch.compile; from 256K elements, on a GPU from 16M
    vs_copy        the least traffic that the op can do, per second, to that of a copy
    added_us       time over torch.lerp's where that is all the op calls: forward, below 64K, on CPU

Targets are of `auto`, see docs/benchmarks.md.
"""

from collections.abc import Iterator

import pytest
import torch
from torch._functorch import config as functorch_config

from bench.harness import BASELINE, CONTROL, Arms, Comparison, Effort, compare, cuda_clock, one_thread, thread_clock
from bench.ops.blend_arms import AUTO, COPY, MODES, NAIVE, SIZES, Expression, Setting, expressions
from bench.ops.blend_in_place import in_place_rows
from bench.registry import Options
from bench.row import Row, Target, make_row

DTYPES = (torch.float32, torch.bfloat16)
GPU = True
NAME = "blend"
NOT_SLOWER, ADDED_US, TWICE, COPY_SHARE = Target(1.0), Target(1.0), Target(0.5), Target(0.9, at_least=True)
FROM_ELEMENTS, LARGE_BYTES = SIZES["64K"], 64 << 20  # where targets of CPU and GPU begin
# How often each tensor of the output's size must be read or written, to a copy's two times.
TRAFFIC = {
    "convex": {"forward": 3 / 2, "backward": 3 / 2, "backward+alpha": 5 / 2},
    "residual": {"forward": 3 / 2, "backward": 2 / 2, "backward+alpha": 3 / 2},  # the host's gradient is the output's
}
CPU_SIZES, QUICK_SIZES = ("64", "16K", "64K", "256K", "16M"), ("64", "16K")
GPU_SIZES = ("64M", "16M", "256K", "64")  # those that have targets come first: time on a GPU may be short
EFFORT, LARGE_EFFORT = Effort(rounds=3, turns=12, block_s=0.002), Effort(rounds=2, turns=5, block_s=0.0)
GPU_EFFORT = Effort(rounds=2, turns=10, block_s=0.002)


def rows(options: Options) -> Iterator[Row]:
    sizes = QUICK_SIZES if options.quick else GPU_SIZES if options.gpu else CPU_SIZES
    for size in sizes:
        full = GPU_EFFORT if options.gpu else LARGE_EFFORT if size == "16M" else EFFORT
        for dtype in DTYPES:
            for mode in MODES:
                setting = Setting(size, dtype, mode, options.device)
                yield from setting_rows(setting, measure(setting, options.effort(full)))
            yield from in_place_rows(size, SIZES[size], dtype, options.device, options.effort(full))


def measure(setting: Setting, effort: Effort) -> Comparison:
    """Every expression of a setting, in turns."""
    made: dict[str, Expression] = {}

    def build() -> Arms:
        made.clear()  # frees the last round's tensors
        made.update(expressions(setting))
        return {name: expression.call for name, expression in made.items()}

    torch.compiler.reset()  # a program for each setting, or dynamo's limit of recompilations is met
    clock = thread_clock if setting.device == "cpu" else cuda_clock
    # donated buffers: a compiled backward would refuse to run twice
    with torch.set_grad_enabled(setting.mode != "forward"), functorch_config.patch(donated_buffer=False):
        return compare(build, effort, clock, around=lambda name: made[name].ready())


def setting_rows(setting: Setting, found: Comparison) -> Iterator[Row]:
    """Every expression to lerp, and ours to each of the others."""
    arms = found.rounds[0][0]
    for arm in arms:
        if arm not in (BASELINE, CONTROL, COPY):
            yield _ratio(setting, found, arm, "vs_lerp", BASELINE, "lerp", _lerp_target(setting, arm))
    if setting.device == "cpu" and setting.mode == "forward" and setting.elements < FROM_ELEMENTS:
        added_us = (found.median_s(f"convex {AUTO}") - found.median_s()) * 1e6
        yield make_row(NAME, f"{setting} convex {AUTO}", "added_us", added_us, "us", target=ADDED_US)
    for form, naive in NAIVE.items():
        arm, program = f"{form} {AUTO}", f"compiled {naive}"
        yield _ratio(setting, found, arm, "vs_naive", naive, naive, _naive_target(setting))
        if program in arms:
            yield _ratio(setting, found, arm, "vs_compiled", program, program)
        for ours in (name for name in arms if name.startswith(form) and setting.mode in TRAFFIC[form]):
            yield _copy_share(setting, found, ours, TRAFFIC[form][setting.mode])


def _ratio(
    setting: Setting, found: Comparison, arm: str, metric: str, to: str, against: str, target: Target | None = None
) -> Row:
    case = f"{setting} {arm}"
    return found.row(NAME, case, metric, arm=arm, to=to, against=against, target=target, device=setting.device)


def _lerp_target(setting: Setting, arm: str) -> Target | None:
    held = arm == f"convex {AUTO}" and setting.device == "cpu" and setting.mode in ("forward", "step", "step+alpha")
    return NOT_SLOWER if held and setting.elements >= FROM_ELEMENTS else None


def _naive_target(setting: Setting) -> Target | None:
    """Without a gradient for alphas the naive backward moves no more memory than any other could."""
    held = setting.device == "cpu" and setting.mode == "backward+alpha"
    return TWICE if held and setting.elements >= FROM_ELEMENTS else None


def _copy_share(setting: Setting, found: Comparison, arm: str, traffic: float) -> Row:
    large = setting.device == "cuda" and setting.elements * setting.dtype.itemsize >= LARGE_BYTES
    return make_row(
        NAME,
        f"{setting} {arm}",
        "vs_copy",
        traffic * found.ratio(COPY, arm),
        "share",
        baseline=f"copy: {found.median_s(COPY) * 1e6:.4g} us",
        aa=found.interval(),
        target=COPY_SHARE if large and arm.endswith(AUTO) else None,
        device=setting.device,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", ["16K", "256K"])
@pytest.mark.parametrize("name", [BASELINE, "addcmul", "convex auto", "residual auto"])
def test_blend(benchmark, name: str, size: str, dtype: torch.dtype, mode: str) -> None:  # type: ignore[no-untyped-def]
    setting = Setting(size, dtype, mode)
    benchmark.group = str(setting)
    with one_thread(), torch.set_grad_enabled(mode != "forward"):
        expression = expressions(setting)[name]
        with expression.ready():
            benchmark(expression.call)
