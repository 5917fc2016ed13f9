"""Every bench runs, with least effort, and gives the rows that it is there for."""

import re

import pytest
import torch

from bench import registry
from bench.flow.bench_recovery import inject
from bench.flow.faults import FAULTS
from bench.flow.hosts import HOSTS
from bench.flow.other_ways import WAYS, Wrapper, model_of
from bench.ops import bench_blend, bench_ops
from bench.ops.bench_blend import measure, setting_rows
from bench.ops.blend_arms import Setting
from bench.registry import Options
from esper.ops import backends
from esper.tezzeret.kernels import triton_version
from tests.bench.fakes import row
from tests.requirements import require

QUICK = Options(quick=True)
OP_FILES = sorted(set(backends.OPS.values()))


def rows(name):
    found = list(registry.load(name).rows(QUICK))
    assert found
    assert {row.bench for row in found} == {name}
    return {(row.case, row.metric): row for row in found}


def test_dormant():
    found = rows("dormant")
    cases, steps = {"Linear", "MLP", "CNN", "transformer"}, {"forward_ratio", "step_ratio"}
    ours = {(case, metric) for case in cases for metric in (*steps, "telemetry_ratio")}
    others = {(f"{case}, {way}", metric) for case in cases for way in WAYS for metric in steps}
    assert found.keys() == ours | others
    assert all(row.target == (1.01 if key in ours else None) for key, row in found.items())
    assert all(row.aa_low <= row.aa_high and row.value > 0 for row in found.values())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", HOSTS)
def test_other_ways_to_attach_a_seed_train_the_host_as_it_is(case, way):
    """A way that left out, or ran twice, part of the model would be no comparison."""
    host = HOSTS[case]
    plain, attached = host.model(), model_of(way, host).train()
    carried = [m for m in attached.modules() if isinstance(m, Wrapper) or m._forward_hooks]
    assert len(carried) == sum(isinstance(m, host.targets) for m in plain.modules())
    for model in (plain, attached):
        model(host.batch()).square().mean().backward()
    got = [p.grad for name, p in attached.named_parameters() if not re.search(r"\b(up|down)\.", name)]
    torch.testing.assert_close(got, [p.grad for p in plain.parameters()])


def test_advance_state():
    found = rows("advance-state")
    assert {("1 seeds auto", "ratio"), ("16 seeds auto", "alone_us")} <= found.keys()


def test_blend():
    found = rows("blend")
    case = "16K float32 forward convex auto"
    assert {metric for known, metric in found if known == case} == {"vs_lerp", "vs_naive", "vs_copy", "added_us"}
    assert found[case, "vs_lerp"].target is None
    assert found[case, "added_us"].target == 1.0
    assert found["16K bfloat16 backward+alpha (1-a)h+ag", "vs_lerp"].value > 0
    assert ("16K float32 in place convex auto", "vs_lerp") in found
    assert ("16K bfloat16 in place dormant auto", "dormant_ratio") in found


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["forward", "backward+alpha"])
def test_blend_beside_the_compiled_expression(mode):
    setting = Setting("256K", torch.float32, mode)
    found = {(row.case, row.metric): row for row in setting_rows(setting, measure(setting, QUICK.effort()))}
    for form in ("convex", "residual"):
        assert found[f"{setting} {form} auto", "vs_compiled"].value > 0
    assert found[f"{setting} convex auto", "vs_naive"].target == (0.5 if mode == "backward+alpha" else None)
    assert found[f"{setting} convex auto", "vs_lerp"].target == (1.0 if mode == "forward" else None)


def test_ops_is_every_ops_own_bench(monkeypatch):
    """And on a GPU those that use one."""
    for op, bench in bench_ops.benches(gpu=False).items():
        monkeypatch.setattr(bench, "rows", lambda options, op=op: iter([row(1.0, case=f"{op} {options.device}")]))
    found = list(bench_ops.rows(Options()))
    assert [(made.bench, made.case) for made in found] == [("ops", f"{op} {op} cpu") for op in OP_FILES]
    monkeypatch.setattr(bench_blend, "GPU", False)
    assert "blend" not in {made.case.split()[0] for made in bench_ops.rows(Options(gpu=True))}


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


def test_library():
    found = rows("library")
    metrics = {metric for _, metric in found}
    assert metrics == {"p50_ms", "p99_ms", "first_ms"}
    asked = {case for case, _ in found if case.startswith("controller's question")}
    assert asked == {f"controller's question, {number} at its interface" for number in (200, 1000)}
    targets = {case: 10.0 if case in asked else 20.0 for case, _ in found}
    assert all(row.target == (targets[case] if metric == "p99_ms" else None) for (case, metric), row in found.items())
    assert all(row.value > 0 for row in found.values())


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


def test_generate():
    found = {metric: row for (_, metric), row in rows("generate").items()}
    assert found.keys() == {"duplicates", "time_per_design", "valid", "compiled", "passed", "answered"}
    assert found["valid"].value == found["valid"].target == 1
    assert {metric: found[metric].target for metric in ("compiled", "passed", "answered", "duplicates")} == {
        "compiled": 0.99,
        "passed": 0.95,
        "answered": 0.8,
        "duplicates": 0,
    }


@pytest.mark.slow
def test_compile():
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")
    found = rows("compile")
    cases = {(f"{pipeline}, 2 designs", metric) for pipeline in ("fast", "standard", "aggressive") for metric in (
        "warm_wall_p50", "warm_wall_max", "warm_cpu_p50",
    )}  # fmt: skip
    cold = {(pipeline, f"cold_{time}") for pipeline in ("fast", "standard", "aggressive") for time in ("wall", "cpu")}
    made = {(f"{pipeline}, 2 designs", "with_kernels") for pipeline in ("standard", "aggressive")}
    assert found.keys() == cases | cold | made
    assert found["fast, 2 designs", "warm_wall_p50"].target == 150
    assert found["standard, 2 designs", "warm_wall_p50"].target == 5000
    assert found["aggressive, 2 designs", "warm_wall_p50"].target == 60_000


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
