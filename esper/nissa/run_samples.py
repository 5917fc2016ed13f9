"""Prometheus samples of runs: names, types and labels, and where each value comes from. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TypeVar

from prometheus_client.core import HistogramMetricFamily, Metric

from esper.nissa.codec import state_name
from esper.nissa.run_metrics import INSIDE_BOUNDS_S, RunCounts, Telemetry

T = TypeVar("T")
# Values with their labels besides the run; none for what was not measured.
Values = Iterable[tuple[dict[str, str], float]]
# Name, type, help, and what reads the values.
Row = tuple[str, str, str, Callable[[T], Values]]


def samples(counts: Mapping[str, RunCounts], telemetry: Mapping[str, Telemetry]) -> Iterator[Metric]:
    """Every metric of every run. A run of which no telemetry came has none of those."""
    yield from _tabulate(_COUNTED, counts)
    yield from _tabulate(_MEASURED, telemetry)
    yield _inside(telemetry)


def _tabulate(rows: Iterable[Row[T]], runs: Mapping[str, T]) -> Iterator[Metric]:
    for name, kind, text, read in rows:
        metric = Metric(name, text, kind)
        suffix = "_total" if kind == "counter" else ""
        for run, of_run in runs.items():
            for labels, value in read(of_run):
                metric.add_sample(name + suffix, {"run": run, **labels}, value)
        yield metric


def _inside(runs: Mapping[str, Telemetry]) -> Metric:
    text = "Time inside Esper on the training thread, per step."
    family = HistogramMetricFamily("esper_inside_seconds", text, labels=["run"])
    bounds = [*(repr(bound) for bound in INSIDE_BOUNDS_S), "+Inf"]
    for run, telemetry in runs.items():
        cumulative = [float(count) for count in accumulate(telemetry.inside)]
        family.add_metric([run], list(zip(bounds, cumulative, strict=True)), telemetry.inside_s)
    return family


def _one(value: float | None) -> Values:
    return [] if value is None else [({}, value)]


def _by(label: str, values: Mapping[str, float]) -> Values:
    return [({label: name}, value) for name, value in values.items()]


def _jobs(telemetry: Telemetry) -> Values:
    return [({"kind": kind, "result": result}, count) for (kind, result), count in telemetry.jobs.items()]


def _seeds(counts: RunCounts) -> Values:
    return _by("state", {state_name(state): count for state, count in sorted(counts.seeds.counts().items())})


_COUNTED: tuple[Row[RunCounts], ...] = (
    ("esper_run", "gauge", "1 for each run.", lambda c: [({"task": c.task, "policy": c.policy}, 1)]),
    ("esper_step", "gauge", "Training steps done; a rollback takes some back.", lambda c: _one(c.step)),
    ("esper_planned_steps", "gauge", "Steps to do.", lambda c: _one(c.total_steps or None)),
    ("esper_step_seconds", "gauge", "Median step time of late.", lambda c: _one(c.step_s_p50)),
    ("esper_train_loss", "gauge", "Training loss, smoothed.", lambda c: _one(c.train_loss)),
    ("esper_validation_loss", "gauge", "Latest held-out loss.", lambda c: _by("arm", c.validation_loss)),
    ("esper_parameters", "gauge", "Parameters of the model.", lambda c: _one(c.parameters)),
    ("esper_stalled_steps", "counter", "Steps that waited for the outside.", lambda c: _one(c.stalled_steps)),
    ("esper_seeds", "gauge", "Seeds by state.", _seeds),
    ("esper_transitions", "counter", "Seeds' moves by the state reached.", lambda c: _by("to", c.transitions)),
    ("esper_decisions", "counter", "Decisions by kind.", lambda c: _by("kind", c.decisions)),
    ("esper_verdicts", "counter", "Verdicts.", lambda c: _by("verdict", c.verdicts)),
    ("esper_commands", "counter", "Commands by what became of them.", lambda c: _by("result", c.commands)),
    ("esper_seed_ends", "counter", "Field reports by outcome.", lambda c: _by("outcome", c.ends)),
    ("esper_notes", "counter", "Notes by level.", lambda c: _by("level", c.notes)),
    ("esper_rollbacks", "counter", "Rollbacks.", lambda c: _one(c.rollbacks)),
    ("esper_queue_depth", "gauge", "Work that waits or is under way.", lambda c: _by("queue", c.queues)),
)
_MEASURED: tuple[Row[Telemetry], ...] = (
    ("esper_nursery_jobs", "counter", "Nursery jobs answered.", _jobs),
    ("esper_train_flops", "counter", "Floating-point operations of training.", lambda t: _one(t.train_flops)),
    ("esper_nursery_flops", "counter", "The same of nursery and twins.", lambda t: _one(t.nursery_flops)),
    ("esper_recoveries", "counter", "Faults got over, by how.", lambda t: _by("strategy", t.recoveries)),
    ("esper_kernel_cache_hits", "counter", "Kernels found in L1.", lambda t: _one(t.cache_hits)),
    ("esper_kernel_cache_misses", "counter", "Kernels not found in L1.", lambda t: _one(t.cache_misses)),
    ("esper_readings", "counter", "Health readings.", lambda t: _one(t.readings)),
    ("esper_readings_dropped", "counter", "Readings a full buffer dropped.", lambda t: _one(t.dropped_readings)),
)
