"""A command with a time limit that ends all it started, and the commands there are."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu.outcomes import VARIABLE
from bench.row import ROOT

TESTS = ("-m", "pytest", "-c", "bench/gpu/pytest.ini", "--rootdir", str(ROOT), "-m", "gpu")
DEFAULT_HOME = "/usr/local/cuda"
PLUGINS = ("-p", "no:cacheprovider", "-p", "bench.gpu.outcomes")
SMALL = ("tests/gpu/test_every_op.py", "-k", "not opcheck")  # what memcheck watches; it makes a program crawl


@dataclass(frozen=True, slots=True)
class Step:
    """`leave_s`: what must be left for later steps when this one ends. `absent`: why there is nothing to run."""

    name: str
    command: Sequence[str]
    most_s: float
    leave_s: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """`result`: passed, failed, stopped (its time was over), or not run."""

    name: str
    result: str
    seconds: float
    detail: str = ""


def run(step: Step, folder: Path, deadline_s: float) -> Ended:
    """Run a step until `deadline_s` of the monotonic clock at most. It writes <folder>/<name>.out and .err."""
    if step.absent:
        return Ended(step.name, "not run", 0.0, step.absent)
    began = time.monotonic()
    limit_s = min(step.most_s, deadline_s - began - step.leave_s)
    if limit_s <= 0:
        return Ended(step.name, "not run", 0.0, "no time was left for it")
    with (folder / f"{step.name}.out").open("w") as out, (folder / f"{step.name}.err").open("w") as err:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=os.environ | step.environment,
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s)
            result, detail = ("passed", "") if status == 0 else ("failed", f"exit status {status}")
        except subprocess.TimeoutExpired:
            result, detail = "stopped", f"after {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it left running, too
            process.wait()
    return Ended(step.name, result, time.monotonic() - began, detail)


def plan(folder: Path, benches: Sequence[str], *, quick: bool) -> list[Step]:
    """Build, tests, benches, memcheck. The last comes last: it is slow, and repeats tests."""
    python, after = sys.executable, 60.0 * len(benches)
    jobs = {"MAX_JOBS": str(os.cpu_count() or 1)}
    tests = {VARIABLE: str(folder / "tests.jsonl")}
    watched = {VARIABLE: str(folder / "memcheck.jsonl"), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitizer, absent = find_sanitizer()
    memcheck = (sanitizer, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "86")
    options = ("--quick",) if quick else ()
    return [
        Step("build", (python, "setup.py", "build_ext", "--inplace"), 240, after + 120, jobs),
        Step("backends", (python, "-m", "esper.ops"), 60, after),
        Step("tests", (python, *TESTS, *PLUGINS, "tests/gpu"), 270, after, tests),
        *(
            Step(f"bench-{name}", (python, "-m", "bench", name, "--gpu", "--json", *options), 200, 30.0 * (left - 1))
            for left, name in zip(range(len(benches), 0, -1), benches, strict=True)
        ),
        Step("memcheck", (*memcheck, python, *TESTS, *PLUGINS, *SMALL), 120, 0, watched, absent),
    ]


def find_sanitizer() -> tuple[str, str]:
    """(compute-sanitizer's path, ""), or ("", why there is none)."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for home in [*homes, DEFAULT_HOME]:
        for place in ("bin/compute-sanitizer", "compute-sanitizer/compute-sanitizer"):
            if (path := Path(home, place)).exists():
                return str(path), ""
    if found := shutil.which("compute-sanitizer"):
        return found, ""
    return "", "compute-sanitizer is absent: it comes with the CUDA toolkit; put it on PATH or set CUDA_HOME"


def missing_packages() -> str:
    """What the tests and benches import and this interpreter lacks, with the remedy; empty where all is there."""
    wanted = ("numpy", "pytest", "hypothesis", "rich", "setuptools", "ninja")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    return f"{sys.executable} lacks {', '.join(missing)}: pip install them, or `make gpu`" if missing else ""
