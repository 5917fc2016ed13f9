"""Faults of kernels injected into small real runs: the share that the stated strategy got over.

`recovered_share` has a row for each fault and strategy of `bench/flow/faults.py`: of the injected faults, those
after which the run had reported that strategy as often as it must, every loss was finite, each faulted step had the
host's own loss, the seed was in the state it should be, and, where the kernel never had a say, the host was bit for
bit that of a run without it. `seed_execution_success`: of the steps with a graft in the host, those without a
fault, where none is injected.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.flow.faults import FAULTS, Fault
from bench.flow.faulty import STEPS_PER_LIFE, Faulty
from bench.harness import one_thread
from bench.registry import Options
from bench.row import Row, Target, make_row
from esper.kasmina.lifecycle import State

NAME = "recovery"
RECOVERED, SUCCESS = Target(0.99, at_least=True), Target(0.999, at_least=True)
INJECTIONS, QUICK_INJECTIONS = 100, 2
UNHURT_STEPS, QUICK_UNHURT_STEPS = 12_000, 200
UNHURT = Fault("none", {}, State.STABILIZATION)


def rows(options: Options) -> Iterator[Row]:
    runs = QUICK_INJECTIONS if options.quick else INJECTIONS
    with one_thread():
        for fault in FAULTS:
            yield from _rows_of(fault, runs)
        yield _unhurt(QUICK_UNHURT_STEPS if options.quick else UNHURT_STEPS)


def _rows_of(fault: Fault, runs: int) -> Iterator[Row]:
    recovered: Counter[str] = Counter()
    for seed in range(runs):
        seen, wrong = inject(fault, seed)
        recovered.update(name for name, count in fault.strategies.items() if not wrong and seen.get(name) == count)
        if seen != fault.strategies:
            wrong.append(f"it reported {seen}, not {dict(fault.strategies)}")
        for what in wrong:
            print(f"{NAME}: {fault.name}, seed {seed}: {what}", file=sys.stderr)
    for strategy in fault.strategies:
        case, share = f"{fault.name}: {strategy}", recovered[strategy] / runs
        yield make_row(NAME, case, "recovered_share", share, "share", baseline=f"{runs} runs", target=RECOVERED)


def inject(fault: Fault, seed: int) -> tuple[dict[str, int], list[str]]:
    """One run under a fault: the recoveries it reported, and what is wrong with it."""
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as name:
        run = Faulty(fault, seed, Path(name))
        run.train(STEPS_PER_LIFE * fault.lives)
        return run.recoveries, run.wrong()


def _unhurt(steps: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as name:
        run = Faulty(UNHURT, 0, Path(name))
        run.train(steps)
    for what in run.wrong():
        print(f"{NAME}: without a fault: {what}", file=sys.stderr)
    good = run.graft_steps - run.recoveries.get("fallback", 0)
    share = good / run.graft_steps if run.graft_steps and not run.wrong() else 0.0
    against = f"{run.graft_steps} steps with a graft"
    return make_row(NAME, "no fault", "seed_execution_success", share, "share", baseline=against, target=SUCCESS)


def test_recovery(benchmark) -> None:  # type: ignore[no-untyped-def]
    benchmark(lambda: inject(FAULTS[0], 0))
