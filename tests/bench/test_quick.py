"""Every bench runs, with least effort, and gives the rows that it is there for."""

import pytest

from bench import registry
from bench.flow.bench_recovery import inject
from bench.flow.faults import FAULTS
from bench.registry import Options

QUICK = Options(quick=True)


def rows(name):
    found = list(registry.load(name).rows(QUICK))
    assert found
    assert {row.bench for row in found} == {name}
    return {(row.case, row.metric): row for row in found}


def test_dormant():
    found = rows("dormant")
    cases = {"Linear", "MLP", "CNN", "transformer"}
    assert found.keys() == {(c, m) for c in cases for m in ("forward_ratio", "step_ratio", "telemetry_ratio")}
    assert all(row.target == 1.01 and row.aa_low <= row.aa_high and row.value > 0 for row in found.values())


def test_advance_state():
    found = rows("advance-state")
    assert {("1 seeds auto", "ratio"), ("16 seeds auto", "alone_us")} <= found.keys()


def test_blend():
    found = rows("blend")
    assert ("16K float32 forward convex auto", "ratio") in found
    assert ("16K float32 forward convex auto", "added_us") in found
    assert ("16K float32 in place convex auto", "ratio") in found
    assert ("16K bfloat16 in place dormant auto", "dormant_ratio") in found


def test_seed_stats():
    found = rows("seed-stats")
    assert {("16K float32 auto", "torch_ratio"), ("16K bfloat16 auto", "read_ratio")} <= found.keys()


def test_compat():
    found = rows("compat")
    assert {metric for _, metric in found} == {
        "dormant_identical",
        "alive_matches_spliced",
        "grows_and_learns",
        "fossilises",
        "exports_to_torch",
        "unwraps",
        "refused_by_name",
    }
    assert all(row.met for row in found.values())


def test_verdict():
    metrics = {metric for case, metric in rows("verdict") if case == "tabular"}
    assert metrics >= {"grafts", "worthless", "nominal_false_keep_rate", "ablation_threshold", "twin_gain_median"}


@pytest.mark.slow
def test_recovery():
    found = rows("recovery")
    shares = {case: row for (case, metric), row in found.items() if metric == "recovered_share"}
    strategies = {case.rpartition(": ")[2] for case in shares}
    assert strategies == {"retry", "fallback", "circuit_breaker", "graceful_degradation", "escalation"}
    assert found["no fault", "seed_execution_success"].target == 0.999
    assert all(row.met for row in found.values())


def test_recovery_sees_a_fault_that_is_not_got_over(monkeypatch):
    nan = next(fault for fault in FAULTS if fault.name == "returns NaN always")
    assert inject(nan, 0) == (nan.strategies, [])
    monkeypatch.setattr("esper.host.graft._fault_of", lambda branch, part: "")
    seen, wrong = inject(nan, 0)
    assert seen != nan.strategies
    assert wrong


@pytest.mark.slow
def test_checkpoint():
    found = rows("checkpoint")
    sizes = {metric: row.value for (case, metric), row in found.items() if case == "3 MB"}
    assert 1 <= sizes["full_size_ratio"] < 1.02
    assert 1 <= sizes["second_size_ratio"] < 1.02
    assert 0.1 <= sizes["incremental_size_ratio"] < 0.12
    assert 2.3 <= sizes["kept_size_ratio"] < 2.4
    assert {"write_s", "incremental_write_s", "restore_s", "copy_ratio"} < set(sizes)
    assert {row.target for (_, metric), row in found.items() if metric == "restore_s"} == {2.0}
    assert found["digits", "restore_s"].value > 0


@pytest.mark.slow
def test_demo_overhead():
    found = rows("demo-overhead")
    assert found.keys() == {("digits", "ratio")}
    assert found["digits", "ratio"].target == 1.02


@pytest.mark.slow
def test_load():
    found = rows("load")
    assert {metric for _, metric in found} == {
        "memory_us",
        "disk_ms_per_256kb",
        "build_ms",
        "warm_up_ms",
        "library_ms",
    }
    assert all(row.value > 0 for row in found.values())


@pytest.mark.slow
def test_disturb():
    found = {metric: row for (_, metric), row in rows("disturb").items()}
    assert found.keys() >= {"inside_esper_p99_share", "inside_esper_max_steps", "external_waits", "median_ratio"}
    assert found["external_waits"].target == 0


@pytest.mark.slow
def test_growth():
    found = rows("growth")
    assert found["digits, seed 0", "never_grown_loss"].value > 0
    assert found["digits", "gain"].value == found["digits, seed 0", "gain"].value
