"""One name, a grid: every op has every implementation, a test and a bench, and no kernel is without an op."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from esper.ops import backends

ROOT = Path(__file__).parents[1]
OPS = sorted(set(backends.OPS.values()))  # files; an op's backward lives in its op's

GRID = {
    "reference": "esper/ops/{op}.py",
    "triton": "kernels_triton/{op}.py",
    "cpp": "csrc/cpu/{op}.cpp",
    "cuda": "csrc/cuda/{op}.cu",
    "test": "tests/ops/test_{op}.py",
    "gpu test": "tests/gpu/test_{op}_gpu.py",
    "bench": "bench/ops/bench_{op}.py",
}


# what serves every op, or none: the folded matrix; compilation ahead of time, and the loader of what it makes; graphs;
# the bench of all ops
SHARED = {"matrix", "aot", "compilation", "specialisation", "cubin", "capture", "ops"}


@pytest.mark.parametrize("kind", GRID)
@pytest.mark.parametrize("op", OPS)
def test_no_op_has_a_hole(op, kind):
    assert (ROOT / GRID[kind].format(op=op)).exists()


@pytest.mark.parametrize("kind", ["triton", "cpp", "cuda", "gpu test", "bench"])
def test_no_kernel_test_or_bench_is_without_an_op(kind):
    pattern = GRID[kind].format(op="*")
    found = {
        re.fullmatch(re.escape(pattern).replace(r"\*", "(.+)"), str(p.relative_to(ROOT)))[1] for p in ROOT.glob(pattern)
    }
    assert found - {"__init__", *SHARED} == set(OPS)


@pytest.mark.parametrize("op", backends.OPS)
def test_every_op_has_a_reference_and_a_schema(op):
    module = importlib.import_module(f"esper.ops.{backends.OPS[op]}")
    assert inspect.isfunction(getattr(module, f"{op}_reference"))
    schemas = (ROOT / "csrc/schemas.cpp").read_text().replace('"\n      "', "")
    registered = getattr(__import__("torch").ops.esper, op).default._schema
    assert f'"{str(registered).removeprefix("esper::")}"' in schemas


@pytest.mark.parametrize("kind", ["cpp", "cuda"])
@pytest.mark.parametrize("op", backends.OPS)
def test_every_op_is_registered_in_the_library(op, kind):
    source = (ROOT / GRID[kind].format(op=backends.OPS[op])).read_text()
    key = {"cpp": "CPU", "cuda": "CUDA"}[kind]
    registrations = source[source.index(f"STABLE_TORCH_LIBRARY_IMPL(esper_native, {key}, m)") :]
    assert f'm.impl("{op}", TORCH_BOX' in registrations


@pytest.mark.parametrize("op", backends.OPS)
def test_triton_has_a_launcher_of_the_references_parameters(op):
    """Read, not imported: Triton may be absent."""
    source = (ROOT / GRID["triton"].format(op=backends.OPS[op])).read_text()
    launcher = re.search(rf"^def {op}\((.*?)\) ->", source, re.S | re.M)
    assert launcher is not None
    reference = getattr(importlib.import_module(f"esper.ops.{backends.OPS[op]}"), f"{op}_reference")
    assert re.findall(r"(\w+):", launcher[1]) == list(inspect.signature(reference).parameters)


def test_triton_kernels_import_torch_and_triton_only():
    for path in (ROOT / "kernels_triton").glob("*.py"):
        imported = set(re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.M))
        third_party = imported - set(sys.stdlib_module_names)
        assert third_party <= {"torch", "triton", "kernels_triton"}, path.name
