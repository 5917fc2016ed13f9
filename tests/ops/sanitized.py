"""Builds the library's CPU code under AddressSanitizer and UndefinedBehaviorSanitizer, and runs Python on it.

As a program, `python -m tests.ops.sanitized LIBRARY ...` is pytest on that library in place of the built one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esper.ops import extension
from tests.requirements import require

from .toolchain import LINK_TORCH, TORCH

ROOT = Path(__file__).parents[2]
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
REPORTS = ("AddressSanitizer", "runtime error:")


def runtime_of(compiler: str) -> list[str]:
    """The libraries that must be in the process before Python: the sanitizer's, and the one whose throw it watches."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = [subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True) for name in names]
    return [path for run in found if "/" in (path := run.stdout.strip())]


def compiler() -> str:
    """g++; the test skips by name where it or its sanitizers are absent."""
    path = shutil.which("g++")
    require("cpp", "" if path else "g++ is not installed: make deps-debian")
    require("cpp", "" if len(runtime_of(path)) == 3 else "g++ has no libasan and libubsan: install libgcc-dev")
    return path


def build(csrc: Path, folder: Path) -> Path:
    """Every CPU source under `csrc`, in one library in `folder`."""
    sources = [*sorted(csrc.glob("*.cpp")), *sorted((csrc / "cpu").glob("*.cpp"))]
    library = folder / "libesper_native.so"
    includes = ["-isystem", TORCH / "include", "-isystem", TORCH / "include/torch/csrc/api/include"]
    flags = ["-shared", "-fPIC", "-std=c++17", "-O1", "-g", *SANITIZERS, TARGET, *includes]
    run = subprocess.run([compiler(), *flags, *sources, "-o", library, *LINK_TORCH], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return library


def python(*arguments: str | Path) -> tuple[int, str]:
    """(exit status, all that was printed) of Python with the sanitizers in it."""
    environment = os.environ | {
        "LD_PRELOAD": ":".join(runtime_of(compiler())),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's and torch's own, at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
        "ESPER_REQUIRE": "cpp",  # no test is skipped for want of the library
    }
    run = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return run.returncode, run.stdout + run.stderr


if __name__ == "__main__":
    extension.LIBRARY = Path(sys.argv[1])
    loaded = extension.load()
    if not loaded.path or "libasan" not in Path("/proc/self/maps").read_text():
        sys.exit(f"not on the sanitized library: {loaded.missing}")
    sys.exit(pytest.main(sys.argv[2:]))
