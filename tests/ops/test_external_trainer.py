"""examples/external_trainer: trainers in Python and in C++ that load the native library and nothing else of Esper."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from esper.ops import extension
from tests.requirements import require

from .blend_cases import CASES, make
from .toolchain import output_of

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/external_trainer"
REFUSED = r"without a shim: .*blend: this library records no autograd graph and grad mode is on"
STEP = re.compile(r"step (\d+): loss ([\d.]+), ramp ([\d.]+), gradients differ by ([\d.e+-]+)")


@pytest.fixture(scope="module")
def library() -> Path:
    require("cpp", extension.load().missing)
    return extension.LIBRARY


def check_course(printed: str) -> None:
    """Both print the same: the refusal, four steps with their gradients compared, 50 steps done."""
    assert re.search(REFUSED, printed)
    steps = [tuple(map(float, found)) for found in STEP.findall(printed)]
    assert [step for step, *_ in steps] == [0, 10, 30, 49]
    assert [ramp for _, _, ramp, _ in steps] == [0, 0.25, 0.75, 1]
    assert steps[-1][1] < 0.7 * steps[0][1]
    assert all(difference < 1e-5 for *_, difference in steps)
    assert re.search(r"^50 steps", printed, re.MULTILINE)


def test_a_python_trainer_needs_torch_the_library_and_a_shim(library, tmp_path):
    """It runs where esper cannot be imported."""
    for part in (EXAMPLE / "shim.py", EXAMPLE / "train.py", library):
        shutil.copy(part, tmp_path)
    (tmp_path / "esper.py").write_text("raise SystemExit('an external trainer imported esper')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "train.py", library.name]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    check_course(run.stdout)
    assert float(re.search(r"([\d.]+)% of the digits are right", run.stdout)[1]) > 80


def test_the_shim_is_short_and_imports_torch_alone():
    source = (EXAMPLE / "shim.py").read_text()
    assert len(source.splitlines()) <= 60
    assert set(re.findall(r"^(?:import|from) (\w+)", source, re.M)) <= {"collections", "typing", "torch"}
    imported = set(re.findall(r"^(?:import|from) (\w+)", (EXAMPLE / "train.py").read_text(), re.M))
    assert imported == {"argparse", "collections", "shim", "sklearn", "torch"}


@pytest.fixture(scope="module")
def shim(library) -> ModuleType:
    spec = importlib.util.spec_from_file_location("shim", EXAMPLE / "shim.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ALIKE = [case for case in CASES if case.layout in ("contiguous", "channels_last", "transposed")]


@pytest.mark.parametrize("case", ALIKE, ids=str)
@pytest.mark.parametrize("alphas_are_trained", [True, False])
def test_the_shims_gradients_are_the_references(shim, case, alphas_are_trained):
    """Dense host and seeds in any one order; a gradient in another, and an expanded one."""
    inputs = make(case)
    leaves = inputs.leaves if alphas_are_trained else inputs.leaves[:-1]
    inputs.alphas.requires_grad_(alphas_are_trained)
    call = {"channel_dim": case.channel_dim, "convex": case.convex}
    for reduce in (lambda out: out.sum(), lambda out: (out * inputs.grad.contiguous()).sum()):
        out = shim.blend(inputs.host, inputs.seeds, inputs.alphas, case.spans, **call)
        got = torch.autograd.grad(reduce(out), leaves)
        torch.testing.assert_close(got, torch.autograd.grad(reduce(inputs.reference()), leaves))


def test_the_shim_refuses_a_second_derivative(shim):
    inputs = make(CASES[1])
    out = shim.blend(inputs.host, inputs.seeds, inputs.alphas, channel_dim=-1)
    (gradient,) = torch.autograd.grad(out.square().sum(), [inputs.alphas], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_cpp_trainer_needs_libtorch_and_the_library(library, tmp_path):
    compiler = os.environ.get("CXX", "c++").split()[0]
    require("cpp", "" if shutil.which(compiler) else f"{compiler} is not installed: make deps-debian")
    program = tmp_path / "trainer"
    output_of("make", "-C", EXAMPLE, f"PYTHON={sys.executable}", f"OUT={program}", f"CXX={compiler}")
    linked = [line.split()[0] for line in output_of("ldd", program).splitlines()]
    assert not any("esper" in name for name in linked), linked
    run = subprocess.run([program, library], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    check_course(run.stdout)
    missing = subprocess.run([program, tmp_path / "absent.so"], capture_output=True, text=True)
    assert missing.returncode == 1 and "absent.so: cannot open shared object file" in missing.stderr
