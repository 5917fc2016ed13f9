"""Metrics: what is counted, that it parses, and that labels stay few."""

import math
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from esper.api.kasmina.v1 import nursery_pb2, telemetry_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.errors import Unavailable
from esper.nissa.metrics import Metrics
from esper.nissa.run_metrics import INSIDE_BOUNDS_S, RunCounts, Telemetry

from .feed import recorded
from .scenario import RUN, packet


def samples(metrics):
    """Value by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }


def counted(events=None):
    counts = RunCounts()
    for event in recorded() if events is None else events:
        counts.take(event)
    return counts


@pytest.fixture
def metrics():
    made = Metrics()
    made.put_run(RUN, counted())
    return made


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("esper_run", {"task": "digits", "policy": "heuristic"}, 1),
        ("esper_step", {}, 1000),
        ("esper_planned_steps", {}, 1000),
        ("esper_step_seconds", {}, 0.0005),
        ("esper_train_loss", {}, 0.65),
        ("esper_validation_loss", {"arm": "run"}, 0.62),
        ("esper_validation_loss", {"arm": "never-grown"}, 0.8),
        ("esper_parameters", {}, 1000),
        ("esper_stalled_steps_total", {}, 0),
        ("esper_seeds", {"state": "FOSSILIZED"}, 1),
        ("esper_seeds", {"state": "CULLED"}, 1),
        ("esper_transitions_total", {"to": "GRAFTING"}, 3),
        ("esper_decisions_total", {"kind": "NONE"}, 3),
        ("esper_decisions_total", {"kind": "ADD_SEED"}, 1),
        ("esper_verdicts_total", {"verdict": "kept"}, 1),
        ("esper_verdicts_total", {"verdict": "culled"}, 1),
        ("esper_commands_total", {"result": "refused"}, 1),
        ("esper_seed_ends_total", {"outcome": "FOSSILIZED"}, 1),
        ("esper_notes_total", {"level": "warning"}, 1),
        ("esper_rollbacks_total", {}, 1),
        ("esper_queue_depth", {"queue": "nursery"}, 3),
    ],
)
def test_the_scenarios_numbers(metrics, name, labels, value):
    assert samples(metrics)[(name, *sorted({"run": RUN, **labels}.items()))] == value


def test_what_was_not_measured_has_no_sample():
    metrics = Metrics()
    metrics.put_run(RUN, RunCounts())
    names = {key[0] for key in samples(metrics) if ("run", RUN) in key}
    assert not {"esper_train_loss", "esper_step_seconds", "esper_parameters", "esper_planned_steps"} & names
    assert not {"esper_train_flops_total", "esper_kernel_cache_hits_total", "esper_inside_seconds_sum"} & names


def test_time_inside_esper_is_a_histogram(metrics):
    said = telemetry_pb2.LayerPerformance(inside_us=[3.0, 40.0, 2e6, math.nan], recoveries={"fallback": 2, "odd": 1})
    metrics.telemetry(RUN).take_performance(said)
    found = samples(metrics)
    buckets = [found["esper_inside_seconds_bucket", ("le", repr(b)), ("run", RUN)] for b in INSIDE_BOUNDS_S]
    assert buckets == [1, 1] + [2] * (len(INSIDE_BOUNDS_S) - 2)
    assert found["esper_inside_seconds_bucket", ("le", "+Inf"), ("run", RUN)] == 3
    assert found["esper_inside_seconds_sum", ("run", RUN)] == pytest.approx(2.000043)
    assert found["esper_recoveries_total", ("run", RUN), ("strategy", "fallback")] == 2
    assert found["esper_recoveries_total", ("run", RUN), ("strategy", "other")] == 1


def test_a_bucket_holds_its_upper_bound():
    telemetry = Telemetry()
    telemetry.take_performance(telemetry_pb2.LayerPerformance(inside_us=[1000.0]))
    assert telemetry.inside[INSIDE_BOUNDS_S.index(1e-3)] == 1


def test_decision_points_tell_what_was_spent_and_what_the_nursery_answered(metrics):
    failed = nursery_pb2.JobResult(job_id="b", twin=nursery_pb2.TwinResult())
    failed.failure.message = "out of memory"
    results = [nursery_pb2.JobResult(job_id="a", trial=nursery_pb2.TrialResult()), failed]
    metrics.telemetry(RUN).take_packet(packet(900, results=results))
    found = samples(metrics)
    assert found["esper_train_flops_total", ("run", RUN)] == 9e11
    assert found["esper_nursery_jobs_total", ("kind", "trial"), ("result", "done"), ("run", RUN)] == 1
    assert found["esper_nursery_jobs_total", ("kind", "twin"), ("result", "failed"), ("run", RUN)] == 1


def test_readings_and_drops_are_counted(metrics):
    signals = [telemetry_pb2.HealthSignal(site="fc1")] * 3
    metrics.telemetry(RUN).take_health(telemetry_pb2.HealthBatch(signals=signals, dropped=4))
    found = samples(metrics)
    assert found["esper_readings_total", ("run", RUN)] == 3
    assert found["esper_readings_dropped_total", ("run", RUN)] == 4


def test_only_the_latest_runs_are_labels():
    metrics = Metrics(max_runs=3)
    for number in range(10):
        metrics.put_run(f"run-{number}", counted())
        metrics.telemetry(f"run-{number}").take_packet(packet(1))
    metrics.put_run("run-7", counted())  # heard of again: now it is the latest
    metrics.put_run("run-10", counted())
    runs = {dict(key[1:]).get("run") for key in samples(metrics)} - {None}
    assert runs == {"run-9", "run-7", "run-10"}
    assert set(metrics._telemetry) <= runs


def test_words_from_outside_do_not_become_labels():
    events = recorded()
    odd = [
        pb.RunEvent(validation=pb.Validation(arm="my-arm", loss=1)),
        pb.RunEvent(note={"level": "shout", "text": "x"}),
        pb.RunEvent(decision={"kind": 99}),
    ]
    counts = counted([*events, *odd])
    assert counts.validation_loss["other"] == 1
    assert counts.notes["other"] == 1
    assert counts.decisions["99"] == 1


def test_calls_are_observed_with_their_code():
    metrics = Metrics()
    metrics.observe_call("esper.api.urza.v1.LibraryService", "GetKernel", "OK", 0.003)
    metrics.observe_call("esper.api.urza.v1.LibraryService", "GetKernel", "NOT_FOUND", 0.02)
    found = samples(metrics)
    labels = (("method", "GetKernel"), ("service", "esper.api.urza.v1.LibraryService"))
    assert found["esper_rpc_calls_total", ("code", "NOT_FOUND"), *labels] == 1
    assert found["esper_rpc_seconds_count", *labels] == 2


def test_kernels_uptime_and_drops():
    now, drops = 100.0, {"telemetry": 0}
    metrics = Metrics(clock=lambda: now, bus_drops=lambda: drops)
    now, drops = 107.5, {"telemetry": 3}
    metrics.count_kernel("promoted")
    found = samples(metrics)
    assert found["esper_uptime_seconds",] == 7.5
    assert found["esper_bus_dropped_total", ("sender", "telemetry")] == 3
    assert found["esper_kernels_total", ("event", "promoted")] == 1
    assert found["esper_kernels_total", ("event", "rejected")] == 0


def test_two_registries_share_nothing():
    one, other = Metrics(), Metrics()
    one.count_kernel("ready")
    assert samples(other)["esper_kernels_total", ("event", "ready")] == 0


def test_the_text_is_served_where_it_is_asked_for(metrics):
    port, end = metrics.expose(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        assert b'esper_step{run="run-1"} 1000.0' in reply.read()
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        metrics.expose(port)
    end()
    again, end = metrics.expose(port)
    assert again == port
    end()
