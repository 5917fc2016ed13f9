"""What the whole of Esper costs a run that does not grow: the digits task under all services, against its bare loop.

`ratio`: wall time of 200 training steps with the decision point that ends them, under a session on
the real courier with growth off, to the same steps of `train_bare`. The services' start, and
the kernels that are made when a run attaches, are waited for first: see `disturb` for these.
Validations go on as in the demo.
"""

import sys
from collections.abc import Iterator

from bench.flow.services import DIGITS, Attached, attached, runtime
from bench.harness import BASELINE, CANDIDATE, CONTROL, Call, Comparison, Effort, compare
from bench.registry import Options
from bench.row import Row, Target
from esper.tolaria.step import build_parts, train_step
from esper.tolaria.task import Task, load_task

NAME = "demo-overhead"
WITHIN = Target(1.02)
STEPS = 200  # per call: one decision point and one validation
EFFORT = Effort(rounds=4, turns=20, block_s=0.0)
QUICK = Effort(rounds=1, turns=3, block_s=0.0)
OFF = {"policy": "never"}
QUIET_LIMIT_S = 300.0


def rows(options: Options) -> Iterator[Row]:
    found = measure(QUICK if options.quick else EFFORT, 0.0 if options.quick else QUIET_LIMIT_S)
    yield found.row(NAME, "digits", "ratio", against=f"{STEPS} bare steps", target=WITHIN)


def measure(effort: Effort, quiet_limit_s: float) -> Comparison:
    """Bare steps and steps under one session, in turns."""
    task = load_task(DIGITS)
    with runtime() as services, attached(services, "overhead", OFF) as run:
        if quiet_limit_s and not services.wait_until_quiet(quiet_limit_s):
            print(f"{NAME}: the services were still at work after {quiet_limit_s:g} s", file=sys.stderr)
        return compare(
            lambda: {BASELINE: bare(task), CONTROL: bare(task), CANDIDATE: under(run)},
            effort,
        )


def bare(task: Task) -> Call:
    """STEPS steps of `esper.tolaria.loop.train_bare`, going on where the last call ended."""
    parts, done = build_parts(task), 0

    def call() -> None:
        nonlocal done
        for _ in range(STEPS):
            train_step(parts, task, task.micro_batches(done))
            done += 1

    return call


def under(run: Attached) -> Call:
    """STEPS steps of `esper.tolaria.loop.train`."""
    task, parts, session = run.task, run.parts, run.session

    def call() -> None:
        for _ in range(STEPS):
            batches = task.micro_batches(session.steps_done)
            loss = train_step(parts, task, batches)
            session.step(batches[0], loss)
            if session.due:
                session.decide()

    return call


def test_demo_overhead(benchmark) -> None:  # type: ignore[no-untyped-def]
    with runtime() as services, attached(services, "overhead", OFF) as run:
        services.wait_until_quiet(QUIET_LIMIT_S)
        benchmark(under(run))
