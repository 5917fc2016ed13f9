"""setup.py: what a wheel holds and is called, with the library and without it, and what the build says."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

from tests.requirements import require

from .toolchain import beside_libtorch, output_of

ROOT = Path(__file__).parents[2]
PARTS = [
    "csrc",
    "esper/ops",
    "kernels_triton",
    "esper/__init__.py",
    "esper/errors.py",
    "setup.py",
    "pyproject.toml",
    "Makefile",
    "requirements/lock.txt",
    "LICENSE",
]
UNPACKED = ["bench", "tests", "examples", "proto"]  # python that no wheel may hold


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what the build reads, so that nothing here touches the checkout."""
    folder = tmp_path / "project"
    for part in PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / part, folder / part)
    for part in UNPACKED:
        (folder / part).mkdir()
        (folder / part / "__init__.py").touch()
    (folder / "README.md").touch()
    return folder


def build(project: Path, **environment: str) -> tuple[Path | None, str]:
    """(the wheel, what the build printed)."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", "dist", "."]
    run = subprocess.run(command, cwd=project, env=os.environ | environment, capture_output=True, text=True)
    wheels = sorted((project / "dist").glob("*.whl")) if run.returncode == 0 else []
    return wheels[0] if wheels else None, run.stdout + run.stderr


def test_without_the_library_the_wheel_is_for_any_platform(project):
    stale = project / "esper/ops/libesper_native.so"
    stale.touch()
    wheel, printed = build(project, ESPER_BUILD="0")
    assert wheel is not None, printed
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "building without the library: ESPER_BUILD=0. Every op then runs its reference expression." in printed
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")] == []


def test_without_a_compiler_the_build_says_so(project):
    run = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=project,
        env=os.environ | {"CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "no C++ compiler (no-such-compiler); install g++ to have it" in run.stderr


@pytest.fixture
def choose_cuda(project, monkeypatch):
    """setup.py's decision about CUDA, without the setup."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("ESPER_BUILD", "0")
    return runpy.run_path(str(project / "setup.py"))["choose_cuda"]


def test_insisting_on_cuda_where_there_is_none_stops_the_build(choose_cuda, monkeypatch):
    monkeypatch.setitem(choose_cuda.__globals__, "cuda_home", lambda: None)
    monkeypatch.setenv("ESPER_BUILD_CUDA", "1")
    with pytest.raises(SystemExit, match="ESPER_BUILD_CUDA=1, but no CUDA toolkit was found: set CUDA_HOME"):
        choose_cuda()
    monkeypatch.setenv("ESPER_BUILD_CUDA", "auto")
    assert choose_cuda() is None


def test_an_unknown_wish_stops_the_build(choose_cuda, monkeypatch):
    monkeypatch.setenv("ESPER_BUILD_CUDA", "yes")
    with pytest.raises(SystemExit, match="ESPER_BUILD_CUDA is 'yes'; it must be 0, 1 or auto"):
        choose_cuda()


def test_cuda_is_left_out_on_request(choose_cuda, monkeypatch):
    monkeypatch.setitem(choose_cuda.__globals__, "cuda_home", lambda: Path("/opt/cuda"))
    monkeypatch.setenv("ESPER_BUILD_CUDA", "0")
    assert choose_cuda() is None
    monkeypatch.setenv("ESPER_BUILD_CUDA", "auto")
    assert choose_cuda() == Path("/opt/cuda")


def make_wheel(project: Path, **environment: str) -> tuple[Path, str]:
    """(the wheel, what was printed) of `make wheel`, in an environment that has what a build needs: this one."""
    venv = project / "venv"
    python = venv / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (venv / ".build").touch()
    run = subprocess.run(
        ["make", "wheel", "VENV=venv"], cwd=project, env=os.environ | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = (project / "dist").iterdir()
    return wheel, run.stdout + run.stderr


@pytest.fixture
def wheel_for_cpu(project) -> Path:
    for tool in (os.environ.get("CXX", "c++"), "make"):
        require("cpp", "" if shutil.which(tool) else f"{tool} is not installed: make deps-debian")
    for stale in ("build/lib.old/esper/gone.py", "dist/esper-0.0.0-py3-none-any.whl"):
        (project / stale).parent.mkdir(parents=True)
        (project / stale).touch()
    wheel, printed = make_wheel(project, ESPER_BUILD_CUDA="0")
    assert "building esper/ops/libesper_native.so for cpu; without cuda" in printed
    return wheel


@pytest.mark.slow
def test_a_wheel_for_cpu_holds_two_packages_and_runs_from_anywhere(wheel_for_cpu, tmp_path):
    assert re.fullmatch(r"esper-[\d.]+-py3-none-(?!any)\w+\.whl", wheel_for_cpu.name)
    names = zipfile.ZipFile(wheel_for_cpu).namelist()
    top = {name.split("/")[0] for name in names}
    assert {"esper", "kernels_triton"} < top
    assert [name for name in top - {"esper", "kernels_triton"} if not name.endswith(".dist-info")] == []
    assert [name for name in names if name.endswith((".so", ".cpp", ".cu", ".h"))] == ["esper/ops/libesper_native.so"]
    assert "esper/gone.py" not in names
    place = tmp_path / "site"
    zipfile.ZipFile(wheel_for_cpu).extractall(place)
    library = place / "esper/ops/libesper_native.so"
    assert re.findall(r"\bU (_?Py\w+)", output_of("nm", "-D", library)) == []
    assert beside_libtorch(library, tmp_path) == "6 12 18 24\n"
    code = (
        "import torch, esper.ops as ops\n"
        "from esper.ops import backends, extension\n"
        "with backends.forced('cpp'):\n"
        "    print(ops.blend(torch.zeros(2), [torch.ones(2)], torch.ones(1), channel_dim=0).tolist())\n"
        "print(extension.load().path, backends.why_not('cuda', 'cuda'))\n"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.startswith("[1.0, 1.0]\n"), run.stderr
    assert str(library) in run.stdout
    assert "the library was built without CUDA" in run.stdout
