"""Generated kernels: their numbers by Triton's interpreter, their machine code for every target, their text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.artifact.agree import TOLERANCE
from esper.artifact.contents import write_graph_file
from esper.artifact.regions import JOINED, PASSES, WHY_NOT_JOINED, last_region
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.plan import plan
from esper.errors import KernelFault
from esper.tezzeret import kernels
from esper.tezzeret.interpreted import check_interpreted
from esper.tezzeret.kernels import MACHINE_CODE, machine_code_files, source_files, triton_version, wide
from esper.tezzeret.regions import find_regions
from esper.tezzeret.rules import RULES
from tests.requirements import require
from tests.tezzeret.fusable import BROADCAST, CASES, CHAIN, GRAPHS

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {torch.float32: TOLERANCE, torch.bfloat16: 3e-2, torch.float16: 4e-3}
TOKENS = Interface(Kind.TOKENS, 64, torch.bfloat16)


@pytest.fixture(scope="module", autouse=True)
def _triton():
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict:
    """What tests/tezzeret/interpreted_graphs.py found."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.tezzeret.interpreted_graphs", str(tmp_path_factory.mktemp("kernels"))]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "interface"), CASES, ids=str)
def test_value_and_every_gradient_are_those_of_float64(interpreted, name, interface):
    seen = interpreted["differences"][f"{name} {interface}"]
    assert seen.keys() >= {"output", "input gradient", "gradient of w"}
    # steps outside regions round to the interface's type as torch does, so that errors of a few roundings add up
    assert {tensor: gap for tensor, gap in seen.items() if not gap <= LIMITS[interface.dtype]} == {}


def test_a_seed_not_at_work_touches_nothing(interpreted):
    assert interpreted["dormant"] == {"3": False, "0": True, "62": True, "63": True, "255": True}


def test_the_graphs_of_these_tests_have_every_rule():
    used = {node.operator for graph in GRAPHS.values() for node in graph.nodes}
    assert set(RULES) <= used


@pytest.mark.parametrize("target", MACHINE_CODE)
@pytest.mark.parametrize("name", GRAPHS)
def test_machine_code_for_every_target_spills_nothing_and_moves_16_bytes(name, target):
    concrete = plan(GRAPHS[name], TOKENS)
    regions, _ = find_regions(concrete)
    assert all(wide(region, concrete) for region in regions)
    files = machine_code_files(regions, concrete, source_files(regions, concrete), target)
    assert WHY_NOT_JOINED not in files
    suffix = MACHINE_CODE[target]
    for region in regions:
        for direction in PASSES + (JOINED if region is last_region(regions, concrete) else ()):
            assert files[f"triton/{region.kernel(direction)}.{suffix}"][:4] == b"\x7fELF"
            described = json.loads(files[f"triton/{region.kernel(direction)}.json"])
            assert described["target"] == target
            assert described["parameters"][0] == {"name": "state_ptr", "type": "*u8", "bytes": 8, "divisible_by": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "interface",
    [
        Interface(Kind.TOKENS, 4096, torch.bfloat16),
        Interface(Kind.TOKENS, 4095),
        Interface(Kind.MAP2D, 256, torch.float16),
        Interface(Kind.MAP2D, 96),
        Interface(Kind.TOKENS, 1024),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", MACHINE_CODE)
def test_machine_code_spills_nothing_at_the_widest(interface, target):
    for graph in (CHAIN, BROADCAST):
        concrete = plan(graph, interface)
        regions, _ = find_regions(concrete)
        assert regions
        files = machine_code_files(regions, concrete, source_files(regions, concrete), target)
        left_out = json.loads(files.get(WHY_NOT_JOINED, b"{}"))
        if left_out:  # eleven steps with two norms take every register there is, without a host beside them
            assert (graph, target) == (CHAIN, "sm_80")
            assert left_out["reason"].endswith("bytes on the stack and 0 in local memory")


def test_code_whose_accesses_are_narrow_is_refused(monkeypatch):
    concrete = plan(CHAIN, Interface(Kind.TOKENS, 63, torch.bfloat16))
    regions, _ = find_regions(concrete)
    monkeypatch.setattr(kernels, "wide", lambda region, concrete: True)
    with pytest.raises(KernelFault, match="region1_forward for sm_90: no access moves 16 bytes"):
        machine_code_files(regions, concrete, source_files(regions, concrete), "sm_90")


def test_a_kernel_that_is_not_its_graph_is_found():
    interface = Interface(Kind.TOKENS, 8)
    concrete = plan(CHAIN, interface)
    regions, _ = find_regions(concrete)
    files = {"graph.json": write_graph_file(CHAIN), **source_files(regions, concrete)}
    right = files["triton/region1.py"]
    changed = right.replace(b"* (1.0 - v5 * v5)", b"* (1.0 - v5)")
    assert changed != right
    wrong = {**files, "triton/region1.py": changed}
    with pytest.raises(KernelFault, match="differs from the reference in its input gradient"):
        check_interpreted(wrong, interface)


def test_text_is_for_people_and_the_same_each_time():
    concrete = plan(CHAIN, TOKENS)
    regions, _ = find_regions(concrete)
    first, second = (source_files(regions, concrete) for _ in range(2))
    assert first == second
    text = first["triton/region1.py"].decode()
    assert "    1 channel_norm, 2 gelu, 3 scale, 4 add, " in text
    assert max(map(len, text.splitlines())) <= 120
    assert str(ROOT) not in text
    compile(text, "region1.py", "exec")
