"""Runs the ops' numeric tests again with Triton's kernels interpreted, in a process where that can be asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esper.ops.backends import OPS
from tests.requirements import require

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("op_file", [*sorted(set(OPS.values())), "blend_in_place"])
def test_the_numbers_of_interpreted_triton_are_right(op_file):
    try:
        import triton  # noqa: F401
    except ImportError as error:
        require("triton", f"{error}: pip install 'esper[triton]'")
    command = [sys.executable, "-m", "pytest", f"tests/ops/test_{op_file}.py", "-k", "triton", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
