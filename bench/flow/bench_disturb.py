"""What training notices while kernels compile, load and swap in a running system.

The demo's digits task trains under all services, which begin with an empty library. The run is set to
grow often and to keep nothing, so that it goes through the whole life of a seed again and again.

`inside_esper_p99_share`: 99th percentile of a step's time inside Esper (`session.step` and, at a
decision point, `decide`), as a share of the median step. `inside_esper_mean_share`: all time inside
Esper as a share of all of training's. `inside_esper_max_steps`: the longest, in median steps.
`external_waits`: how often the training thread, inside Esper, opened a file or a socket, started a
process, slept, or waited for an answer. `median_ratio`: the median step to that of the same loop
without Esper beside a foreign process as busy as the services, which rest meanwhile; blocks in
which a graft was in the host are left out, since that is more arithmetic.
`swaps` and `kernels_loaded`: what happened in the meantime; without them the rest means nothing.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bench.flow.busy import Elsewhere, ForeignLoad
from bench.flow.services import DIGITS, Attached, Runtime, attached, runtime
from bench.flow.waits import Waits
from bench.harness import BASELINE, CANDIDATE, CONTROL, Comparison, Turn, one_thread
from bench.registry import Options
from bench.row import Row, Target, make_row
from esper.kasmina.lifecycle import IN_HOST, State, Transition
from esper.tolaria.step import build_parts, train_step
from esper.tolaria.task import Task, load_task

NAME, CASE = "disturb", "digits"
P99_SHARE, MAX_STEPS, NO_WAITS, SAME = Target(0.02), Target(1.0), Target(0.0), Target(1.0)
HAPPENED = Target(1.0, at_least=True)
STEPS = 200  # per block: one decision point
# Every event inserts something, and no gain is large enough for it to stay.
GROWTH = {
    "policy": "periodic-random",
    "first_event_step": 200,
    "event_spacing_steps": 400,
    "nursery_steps": 40,
    "measure_every_steps": 20,
    "candidates_per_site": 1,
    "ramp_steps": 10,
    "verdict_steps": 100,
    "verdict_snapshots": 2,
    "snapshot_gap_steps": 10,
    "fine_tune_steps": 10,
    "embargo_steps": 200,
    "min_gain": 0.99,
}


@dataclass(frozen=True, slots=True)
class Length:
    """Measure until there are `turns` without a graft and `swaps`, but no longer than `limit_s`."""

    turns: int = 30
    swaps: int = 3
    limit_s: float = 400.0


QUICK = Length(turns=2, swaps=0, limit_s=60.0)


@dataclass(slots=True)
class Measured:
    """What was seen of one run."""

    inside_s: list[float] = field(default_factory=list)  # of each step
    step_s: list[float] = field(default_factory=list)  # inside included
    turns: list[Turn] = field(default_factory=list)  # median step of each arm, where no graft was in the host
    swaps: int = 0
    loads: int = 0
    waits: int = 0


def rows(options: Options) -> Iterator[Row]:
    seen = measure(QUICK if options.quick else Length())
    median_s = statistics.median(seen.step_s)
    against = f"median step: {median_s * 1e6:.4g} us"
    share = float(np.quantile(seen.inside_s, 0.99)) / median_s
    steps = max(seen.inside_s) / median_s
    yield make_row(NAME, CASE, "inside_esper_p99_share", share, "share", baseline=against, target=P99_SHARE)
    yield make_row(
        NAME, CASE, "inside_esper_mean_share", sum(seen.inside_s) / sum(seen.step_s), "share", baseline="all steps"
    )
    yield make_row(NAME, CASE, "inside_esper_max_steps", steps, "steps", baseline=against, target=MAX_STEPS)
    yield make_row(NAME, CASE, "external_waits", seen.waits, "count", target=NO_WAITS)
    if seen.turns:
        found = Comparison([seen.turns])
        yield found.row(NAME, CASE, "median_ratio", against="step beside a foreign process", target=SAME)
    happened = None if options.quick else HAPPENED
    yield make_row(NAME, CASE, "kernels_loaded", seen.loads, "count", target=happened)
    yield make_row(NAME, CASE, "swaps", seen.swaps, "count", target=happened)


def measure(length: Length) -> Measured:
    """Blocks of STEPS steps under the services and of bare steps beside the foreign load, in turns."""
    seen, order, task = Measured(), random.Random(0), load_task(DIGITS)
    with (
        one_thread(),
        runtime() as services,
        attached(services, "disturbed", GROWTH) as run,
        ForeignLoad() as load,
        Waits() as waits,
    ):
        arms = {
            BASELINE: control(task, services, load),
            CONTROL: control(task, services, load),
            CANDIDATE: lambda: disturbed(run, seen, waits),
        }
        deadline = time.monotonic() + length.limit_s
        while (len(seen.turns) < length.turns or seen.swaps < length.swaps) and time.monotonic() < deadline:
            _turn(arms, order, load, run, seen)
        seen.waits = sum(waits.seen.values()) + run.session.progress.stalled_steps
        for what, count in waits.seen.most_common(5):
            print(f"{NAME}: outside, {count} times: {what}", file=sys.stderr)
    return seen


def _turn(
    arms: dict[str, Callable[[], float]], order: random.Random, load: ForeignLoad, run: Attached, seen: Measured
) -> None:
    """Every arm once, in an order drawn anew; kept for the ratio if the host was the plain one."""
    names, elsewhere = list(arms), Elsewhere()
    order.shuffle(names)
    grafted = bool(run.handle.executor.grafts)
    turn, cores = {}, {}
    for name in names:
        elsewhere.start()
        turn[name] = arms[name]()
        cores[name] = elsewhere.cores()
    load.follow(cores[CANDIDATE], statistics.mean((cores[BASELINE], cores[CONTROL])))
    if not grafted and not run.handle.executor.grafts:
        seen.turns.append(turn)


def control(task: Task, services: Runtime, load: ForeignLoad) -> Callable[[], float]:
    """STEPS bare steps beside the foreign load. Returns their median, in seconds."""
    parts, done = build_parts(task), 0

    def block() -> float:
        nonlocal done
        taken = []
        with services.paused(), load.running():
            for _ in range(STEPS):
                began = time.perf_counter()
                train_step(parts, task, task.micro_batches(done))
                taken.append(time.perf_counter() - began)
                done += 1
        return statistics.median(taken)

    return block


def disturbed(run: Attached, seen: Measured, waits: Waits) -> float:
    """STEPS steps of `esper.tolaria.loop.train`. Returns their median, in seconds."""
    task, parts, session = run.task, run.parts, run.session
    taken = []
    for _ in range(STEPS):
        began = time.perf_counter()
        batches = task.micro_batches(session.steps_done)
        loss = train_step(parts, task, batches)
        entered = time.perf_counter()
        with waits.watching():
            session.step(batches[0], loss)
            moved = session.decide() if session.due else []
        ended = time.perf_counter()
        seen.inside_s.append(ended - entered)
        taken.append(ended - began)
        seen.loads += sum(move.target is State.TRAINING for move in moved)
        seen.swaps += sum(_is_swap(move) for move in moved)
    seen.step_s += taken
    return statistics.median(taken)


def _is_swap(move: Transition) -> bool:
    """Whether the host's forward changed: a graft went in or out."""
    return move.target is State.GRAFTING or (move.source in IN_HOST and move.target is State.CULLED)


def test_disturb(benchmark) -> None:  # type: ignore[no-untyped-def]
    seen = Measured()
    with runtime() as services, attached(services, "disturbed", GROWTH) as run, Waits() as waits:
        benchmark(lambda: disturbed(run, seen, waits))
