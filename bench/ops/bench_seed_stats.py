"""seed_stats against torch's expressions of the same eight numbers, and against reading the tensor.

`torch` is the usual way: mean, variance, ratios, histogram and so on, each by a call of its own. `read` is
values.sum(), the least that can be done with every element. `auto` is what a caller gets; a backend's name is that
backend, forced. On CPU one thread is used and its own time is counted, not the wall's.

Targets: on CPU, `torch_ratio` of `auto` from 64K elements on. On a GPU, `copy_share`, the least traffic the op can do
per second to that of a copy, at 64 MB.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bench.harness import BASELINE, CONTROL, Arms, Comparison, Effort, compare, cuda_clock, one_thread, thread_clock
from bench.registry import Options
from bench.row import Row, Target, make_row
from esper.ops import backends, seed_stats
from esper.ops.seed_stats import BINS, LIMIT

SIZES = {"16K": 1 << 14, "64K": 1 << 16, "1M": 1 << 20, "16M": 1 << 24, "32M": 1 << 25}
DTYPES = (torch.float32, torch.bfloat16)
CHANNELS = 64
GPU = True
NAME, AUTO, TORCH, COPY = "seed-stats", "auto", "torch", "copy"
TORCH_RATIO = Target(1.0)
COPY_SHARE = Target(0.85, at_least=True)
READS_TO_A_COPYS = 1 / 2  # a copy reads and writes each element; this op reads it
EFFORT, LARGE_EFFORT = Effort(rounds=3, turns=12, block_s=0.002), Effort(rounds=2, turns=5, block_s=0.0)


@dataclass(frozen=True)
class Setting:
    size: str
    dtype: torch.dtype
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.size} {str(self.dtype).removeprefix('torch.')}"


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


def by_torch(values: Tensor, limit: Tensor) -> Tensor:
    """The row by one torch call per number, as float32; nothing waits for the device but the histogram's range."""
    x = values.float()
    finite, zero = torch.isfinite(x), x == 0
    counts = torch.histc(x, BINS, -float(limit), float(limit))
    shares = counts / counts.sum()
    largest = x.abs().amax()
    entropy = -torch.xlogy(shares, shares).sum()
    dead = zero.all(0).float().mean()
    after = torch.maximum(largest, 0.99 * limit)
    variance, mean = torch.var_mean(x, correction=0)
    return torch.stack([mean, variance, zero.float().mean(), dead, entropy, largest, (~finite).sum().float(), after])


def expressions(setting: Setting) -> dict[str, Expression]:
    """Every expression of the setting, checked once."""
    torch.manual_seed(0)
    shape = (SIZES[setting.size] // CHANNELS, CHANNELS)
    values = torch.randn(shape, device=setting.device).clamp_(min=0).to(setting.dtype)
    stats = torch.zeros(1, 8, device=setting.device)
    limit = values.abs().max().float()
    stats[0, LIMIT] = limit

    def ours() -> Tensor:
        seed_stats(values, stats, channel_dim=1)
        return stats

    forced = [backend for backend in ("cpp", "cuda", "triton") if not backends.why_not(backend, setting.device)]
    made = {
        BASELINE: Expression(values.sum),
        CONTROL: Expression(values.sum),
        TORCH: Expression(lambda: by_torch(values, limit)),
        **{backend: Expression(ours, backend) for backend in (AUTO, *forced)},
    }
    want = by_torch(values, limit)
    for backend in (AUTO, *forced):
        with backends.forced(backend):
            torch.testing.assert_close(ours()[0], want, rtol=1e-3, atol=1e-3)
    if setting.device == "cuda":
        target = torch.empty_like(values)
        made[COPY] = Expression(lambda: target.copy_(values))
    return made


def rows(options: Options) -> Iterator[Row]:
    for size in ("16K",) if options.quick else tuple(SIZES):
        effort = options.effort(LARGE_EFFORT if SIZES[size] > 1 << 20 else EFFORT)
        for dtype in DTYPES:
            setting = Setting(size, dtype, options.device)
            yield from setting_rows(setting, measure(setting, effort))


def measure(setting: Setting, effort: Effort) -> Comparison:
    """Every expression of a setting, in turns."""
    made: dict[str, Expression] = {}

    def build() -> Arms:
        made.update(expressions(setting))
        return {name: expression.call for name, expression in made.items()}

    clock = thread_clock if setting.device == "cpu" else cuda_clock
    return compare(build, effort, clock, around=lambda name: made[name].ready())


def setting_rows(setting: Setting, found: Comparison) -> Iterator[Row]:
    """Each backend beside a read and beside torch's expressions, and on a GPU beside a copy."""
    bytes_read = SIZES[setting.size] * setting.dtype.itemsize
    for arm in found.rounds[0][0]:
        if arm in (BASELINE, CONTROL, COPY):
            continue
        case = f"{setting} {arm}"
        yield found.row(NAME, case, "read_ratio", arm=arm, against="values.sum()", device=setting.device)
        if arm == TORCH:
            continue
        held = arm == AUTO and setting.device == "cpu" and SIZES[setting.size] >= SIZES["64K"]
        target = TORCH_RATIO if held else None
        yield found.row(
            NAME, case, "torch_ratio", arm=arm, to=TORCH, against=TORCH, target=target, device=setting.device
        )
        if COPY in found.rounds[0][0]:
            yield make_row(
                NAME,
                case,
                "copy_share",
                READS_TO_A_COPYS * found.ratio(COPY, arm),
                "share",
                baseline=f"copy: {found.median_s(COPY) * 1e6:.4g} us",
                aa=found.interval(),
                target=COPY_SHARE if arm == AUTO and bytes_read >= 64 << 20 else None,
                device="cuda",
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", ["16K", "1M"])
@pytest.mark.parametrize("name", [BASELINE, TORCH, AUTO])
def test_seed_stats(benchmark, name: str, size: str, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    setting = Setting(size, dtype)
    benchmark.group = str(setting)
    expression = expressions(setting)[name]
    with one_thread(), expression.ready():
        benchmark(expression.call)
