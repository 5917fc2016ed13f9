"""What growth brings: the demo's tasks, grown, beside the same model never grown and a static one of the final size.

Every task is run with several random seeds; all three arms of a run share seed, batches and steps.
One row per run and number (case "digits, seed 0"), then per task the mean over seeds and the ends
of its 95 % interval, Student's t (`..._low`, `..._high`). Losses are of the test slice, which is read
once. `gain`: 1 - grown / never grown. `compute_ratio`: floating-point operations of the grown run,
nursery and twins counted, to the run never grown. `decision_to_verdict_s`: from the decision that
germinated a seed to its first verdict; a figure for use only with `--services`, since without them
training waits for every answer.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from scipy import stats  # type: ignore[import-untyped]

from bench.growth.runs import ARMS, GROWN, Outcome, demo
from bench.registry import Options
from bench.row import Row, Target, make_row

NAME = "growth"
LONG = True
TASKS = ("digits", "text", "tabular")
QUICK_STEPS = 200
NO_HARM = Target(0.0, at_least=True)  # the upper end of the gain's interval
COMPUTE, VERDICT_S = Target(4.0), Target(60.0)


def rows(options: Options) -> Iterator[Row]:
    tasks = tuple(options.tasks) or (TASKS[:1] if options.quick else TASKS)
    steps = QUICK_STEPS if options.quick else 0
    for task in tasks:
        outcomes = []
        for seed in range(1 if options.quick else options.seeds):
            with tempfile.TemporaryDirectory(prefix="esper-bench-") as folder:
                outcome = demo(task, seed, Path(folder), services=options.services, steps=steps)
            outcomes.append(outcome)
            yield from run_rows(f"{task}, seed {seed}", outcome)
        yield from task_rows(task, outcomes, services=options.services)


def run_rows(case: str, outcome: Outcome) -> Iterator[Row]:
    """One run as it was."""
    for arm in ARMS:
        yield make_row(NAME, case, f"{_name(arm)}_loss", outcome.loss[arm], "loss")
        yield make_row(NAME, case, f"{_name(arm)}_parameters", outcome.parameters[arm], "count")
    yield make_row(NAME, case, "gain", outcome.gain, "share")
    yield make_row(NAME, case, "compute_ratio", outcome.compute_ratio, "ratio")
    for metric in ("fossilised", "culled", "stalled_steps"):
        yield make_row(NAME, case, metric, getattr(outcome, metric), "count")
    for seconds in outcome.verdict_s:
        yield make_row(NAME, case, "decision_to_verdict_s", seconds, "s")


def task_rows(task: str, outcomes: Sequence[Outcome], *, services: bool) -> Iterator[Row]:
    """All runs of a task."""
    for arm in ARMS:
        yield from _mean(task, f"{_name(arm)}_loss", [o.loss[arm] for o in outcomes], "loss")
    yield from _mean(task, "gain", [o.gain for o in outcomes], "share", high=NO_HARM)
    yield from _mean(task, "added_parameters", [_added(o) for o in outcomes], "count")
    yield from _mean(task, "compute_ratio", [o.compute_ratio for o in outcomes], "ratio", mean=COMPUTE)
    if verdicts := [seconds for o in outcomes for seconds in o.verdict_s]:
        longest = max(verdicts)
        yield make_row(NAME, task, "decision_to_verdict_s_median", statistics.median(verdicts), "s")
        target = VERDICT_S if services else None
        yield make_row(NAME, task, "decision_to_verdict_s_max", longest, "s", target=target)


def _mean(
    task: str, metric: str, values: Sequence[float], unit: str, mean: Target | None = None, high: Target | None = None
) -> Iterator[Row]:
    """The mean over seeds; its interval where there are two or more."""
    yield make_row(NAME, task, metric, statistics.mean(values), unit, target=mean)
    if len(values) > 1:
        below, above = interval(values)
        yield make_row(NAME, task, f"{metric}_low", below, unit)
        yield make_row(NAME, task, f"{metric}_high", above, unit, target=high)


def interval(values: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """Of the mean, Student's t. Two values or more."""
    mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    reach = float(stats.t.ppf((1 + share) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach


def _added(outcome: Outcome) -> float:
    return float(outcome.parameters[GROWN] - outcome.parameters["never-grown"])


def _name(arm: str) -> str:
    return arm.replace("-", "_")


def test_growth(benchmark, tmp_path) -> None:  # type: ignore[no-untyped-def]
    benchmark.pedantic(lambda: demo("digits", 0, tmp_path, services=False, steps=QUICK_STEPS), rounds=1)
