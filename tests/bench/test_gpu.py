"""`python -m bench.gpu`: what it says without a device, its time limits, its plugin and its table, on any machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import registry
from bench.gpu import __main__ as command
from bench.gpu import outcomes, report, steps
from bench.gpu.outcomes import Outcome
from bench.gpu.steps import Ended, Step
from bench.row import ROOT
from esper.ops import backends
from tests.bench.fakes import row

SOON = 60.0


def python(code: str, most_s: float = SOON, **fields: object) -> Step:
    return Step("step", (sys.executable, "-c", code), most_s, **fields)


def run(step: Step, folder, seconds: float = SOON) -> Ended:
    return steps.run(step, folder, time.monotonic() + seconds)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_fails():
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("bench.gpu: no CUDA device: torch ")
    assert "nothing was run" in done.stderr
    assert done.stdout == ""


def test_an_interpreter_without_the_packages_is_told_which(monkeypatch, capsys):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: None if name == "hypothesis" else name)
    assert command.main([]) == 2
    assert "lacks hypothesis: pip install them" in capsys.readouterr().err


def test_a_step_passes_or_fails_by_its_exit_status(tmp_path):
    assert run(python("print('said')"), tmp_path).result == "passed"
    assert (tmp_path / "step.out").read_text() == "said\n"
    ended = run(python("raise SystemExit(3)"), tmp_path)
    assert (ended.result, ended.detail) == ("failed", "exit status 3")


def test_a_step_that_takes_too_long_is_ended_with_all_it_started(tmp_path):
    step = Step("step", ("sh", "-c", "sleep 600 & echo $!; wait"), 1.0)
    ended = run(step, tmp_path)
    assert (ended.result, ended.detail) == ("stopped", "after 1 s")
    child = int((tmp_path / "step.out").read_text())
    assert not running(child)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_step_without_time_or_without_its_tool_is_not_run_and_says_why(tmp_path):
    assert run(python("", leave_s=90.0), tmp_path).detail == "no time was left for it"
    assert run(python("", absent="it is absent"), tmp_path) == Ended("step", "not run", 0.0, "it is absent")


def test_the_whole_plan_fits_its_time(tmp_path):
    """What a step leaves to the later ones is theirs, however long it takes."""
    plan = steps.plan(tmp_path, ["blend", "seed-stats", "advance-state"], quick=False)
    assert [step.name for step in plan][:3] == ["build", "backends", "tests"]
    assert plan[-1].name == "memcheck"
    now, end = 0.0, 9 * 60 - command.MARGIN_S
    for step in plan[:-1]:
        limit_s = min(step.most_s, end - now - step.leave_s)
        assert limit_s > 25, step.name
        now += limit_s
    assert now <= end


def test_a_sanitizer_is_found_or_named_as_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(steps.shutil, "which", lambda name: None)
    monkeypatch.setattr(steps, "DEFAULT_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert "compute-sanitizer is absent" in steps.find_sanitizer()[1]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/compute-sanitizer").touch()
    assert steps.find_sanitizer() == (str(tmp_path / "bin/compute-sanitizer"), "")


TESTS = """
import os, pytest, signal
@pytest.mark.gpu
@pytest.mark.parametrize("n", [0, 1, 2])
def test_some(n):
    if n == 1:
        pytest.skip("triton: not installed")
    assert n == 0, "two is too many"
@pytest.mark.gpu
def test_that_does_not_end():
    os.kill(os.getpid(), signal.SIGKILL)
@pytest.mark.gpu
def test_never_reached(): pass
def test_of_the_cpu(): pass
"""


@pytest.fixture
def outcomes_of_a_stopped_run(tmp_path):
    """Under the options of the real run, which ends in the middle of a test, as where its time is over."""
    (tmp_path / "test_fake.py").write_text(TESTS)
    environment = {outcomes.VARIABLE: str(tmp_path / "tests.jsonl"), "PYTHONPATH": str(ROOT)}
    inside = ("-c", f"import os; os.chdir({str(ROOT)!r}); import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))")
    arguments = (*steps.TESTS[2:], *steps.PLUGINS, str(tmp_path / "test_fake.py"))
    step = Step("tests", (sys.executable, *inside, *arguments), SOON, environment=environment)
    ended = run(step, tmp_path)
    assert ended.detail == "exit status -9", (tmp_path / "tests.out").read_text()
    return ended, list(outcomes.read(tmp_path / "tests.jsonl"))


def test_a_run_that_is_stopped_has_said_what_it_knows(outcomes_of_a_stopped_run):
    ended, found = outcomes_of_a_stopped_run
    said = [(o.test.rpartition("::")[2], o.result, o.reason) for o in found]
    assert said == [
        ("test_some[0]", "passed", ""),
        ("test_some[1]", "skipped", "triton: not installed"),
        ("test_some[2]", "failed", "call: AssertionError: two is too many"),
        ("test_that_does_not_end", "stopped", "it began and did not end"),
    ]
    shown = report.table([ended], found, [], [])
    assert "1 passed, 1 failed, 1 skipped" in shown
    assert all(reason in shown for _, _, reason in said)
    assert report.failed([ended], found)


def test_the_table_has_steps_tests_and_rows_and_names_what_is_amiss():
    ended = [Ended("build", "passed", 61.0), Ended("memcheck", "not run", 0.0, "compute-sanitizer is absent")]
    tests = [Outcome("t.py::test_a[x]", "passed"), Outcome("t.py::test_a[y]", "passed")]
    rows = [row(0.93, 0.9, aa=(0.99, 1.02)), row(1.5, 1.0, aa=(0.99, 1.02), case="slow")]
    lines = report.table(ended, tests, [], rows).splitlines()
    assert len(lines) == 1 + 2 + 1 + 2
    assert lines[1].split() == ["step", "build", "passed", "61", "s"]
    assert lines[3].endswith("passed   2 passed")
    assert "MISSED" in lines[5]
    assert "target 1; A/A 0.990 to 1.020" in lines[5]
    assert not report.failed(ended, tests)


@pytest.mark.parametrize(
    ("ended", "tests"),
    [
        ([Ended("build", "failed", 1.0)], [Outcome("t", "passed")]),
        ([Ended("tests", "not run", 0.0)], [Outcome("t", "passed")]),
        ([Ended("tests", "passed", 1.0)], []),
        ([Ended("tests", "passed", 1.0)], [Outcome("t", "skipped", "no cuda")]),
        ([Ended("memcheck", "failed", 1.0)], [Outcome("t", "passed")]),
    ],
)
def test_nothing_that_failed_or_was_left_out_passes_for_success(ended, tests):
    assert report.failed(ended, tests)


def test_rows_of_a_bench_that_was_stopped_are_kept(tmp_path):
    whole = row(1.0).json()
    (tmp_path / "bench-fake.out").write_text(f"warming up\n{whole}\n{whole[:40]}")
    assert list(command._rows(tmp_path)) == [row(1.0)]


def test_a_step_that_fails_hides_no_other(tmp_path, monkeypatch, capsys):
    """The whole command, with a plan of small steps in place of the real one."""
    bench = f"print({row(0.5, 1.0).json()!r})"
    passed = json.dumps({"test": "t.py::test_a", "result": "passed", "reason": ""})

    def plan(folder, names, *, quick):
        assert names == registry.gpu_names()
        tests = f"open({str(folder / 'tests.jsonl')!r}, 'w').write({passed!r} + chr(10))"
        made = {"build": "raise SystemExit('no nvcc')", "tests": tests, "bench-fake": bench}
        return [Step(name, (sys.executable, "-c", code), SOON) for name, code in made.items()]

    monkeypatch.setattr(steps, "plan", plan)
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    assert command.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "no nvcc" in said
    assert "t.py::test_a" in said
    [written] = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert written["value"] == 0.5


def test_gpu_benches_are_found_without_importing_the_others():
    names = [name for name in registry.names() if registry.load(name).gpu and not registry.load(name).long]
    assert registry.gpu_names() == names


def test_the_gpu_tests_and_benches_need_no_bus_and_no_services():
    """A machine that is lent for its GPU has torch, and little else."""
    absent = ("grpc", "nats", "sqlalchemy", "obstore", "nacl", "cryptography", "protovalidate", "pytest_asyncio")
    modules = [f"bench.ops.bench_{op}" for op in sorted(set(backends.OPS.values()))]
    modules += ["bench.gpu.__main__", "tests.conftest", *(f"tests.gpu.{p.stem}" for p in ROOT.glob("tests/gpu/t*.py"))]
    code = f"import sys, importlib\nsys.modules.update(dict.fromkeys({absent}))\n"
    code += f"for name in {modules}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
