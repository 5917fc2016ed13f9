"""advance_state beside writing each alpha by itself.

`ratio` is one launch for a table of S seeds, all ramping, to S calls of `fill_` on its entries, which is what the same
step costs without the op; `alone_us` is the launch by itself. `auto` is what a caller gets. On CPU one thread is used
and its own time is counted.
"""

from collections.abc import Iterator

import pytest
import torch

from bench.harness import BASELINE, CONTROL, Arms, Call, Comparison, Effort, compare, cuda_clock, thread_clock
from bench.registry import Options
from bench.row import Row, make_row
from esper.kasmina.schedule import ramp
from esper.ops import advance_state, backends

NAME = "advance-state"
SEEDS = (1, 16, 256, 4096)
BEGIN, LENGTH, RAMPING = 1000, 1_000_000, 1 << 5
EFFORT, LARGE_EFFORT = Effort(rounds=4, turns=20, block_s=0.002), Effort(rounds=3, turns=10, block_s=0.0)
GPU = True


def arms(seeds: int, device: str) -> Arms:
    """`fill_` of each entry, and the op under each backend that is there; all do the same to a table of their own."""
    made: dict[str, Call] = {BASELINE: _filled(seeds, device), CONTROL: _filled(seeds, device)}
    there = [backend for backend in ("auto", "cpp", "cuda", "triton") if _is_there(backend, device)]
    return made | {backend: _advanced(seeds, device) for backend in there}


def _is_there(backend: str, device: str) -> bool:
    return backend == "auto" or not backends.why_not(backend, device)


def _filled(seeds: int, device: str) -> Call:
    alphas = torch.zeros(seeds, device=device)
    entries, step = list(alphas), BEGIN

    def call() -> None:
        nonlocal step
        step += 1
        for entry in entries:
            entry.fill_(ramp(step, BEGIN, LENGTH))

    return call


def _advanced(seeds: int, device: str) -> Call:
    def column(value: int, dtype: torch.dtype = torch.int64, size: int = seeds) -> torch.Tensor:
        return torch.full((size,), value, dtype=dtype, device=device)

    alphas, ages, step = column(0, torch.float32), column(0), column(BEGIN, size=1)
    states, begins, lengths = column(5, torch.uint8), column(BEGIN), column(LENGTH)
    advance_state(alphas, ages, step, states, begins, lengths, ramping=RAMPING, counting=RAMPING)
    if seeds and alphas[-1].item() != torch.tensor(ramp(BEGIN + 1, BEGIN, LENGTH)).item():
        raise RuntimeError(f"advance_state gave alpha {alphas[-1].item()}; it is not timed")
    return lambda: advance_state(alphas, ages, step, states, begins, lengths, ramping=RAMPING, counting=RAMPING)


def measure(seeds: int, device: str, effort: Effort) -> Comparison:
    clock = thread_clock if device == "cpu" else cuda_clock
    named = ("cpp", "cuda", "triton")
    return compare(
        lambda: arms(seeds, device),
        effort,
        clock,
        around=lambda arm: backends.forced(arm if arm in named else "auto"),
    )


def rows(options: Options) -> Iterator[Row]:
    for seeds in SEEDS[:2] if options.quick else SEEDS:
        effort = options.effort(LARGE_EFFORT if seeds > 1000 else EFFORT)
        found = measure(seeds, options.device, effort)
        for arm in found.rounds[0][0]:
            if arm in (BASELINE, CONTROL):
                continue
            case = f"{seeds} seeds {arm}"
            yield found.row(NAME, case, "ratio", arm=arm, against=f"{seeds} fill_", device=options.device)
            yield make_row(NAME, case, "alone_us", found.median_s(arm) * 1e6, "us", device=options.device)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", [BASELINE, "auto"])
def test_advance_state(benchmark, name: str, seeds: int) -> None:  # type: ignore[no-untyped-def]
    benchmark.group = f"{seeds} seeds"
    benchmark(arms(seeds, "cpu")[name])
