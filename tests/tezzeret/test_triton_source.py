"""Generated kernels: their numbers by Triton's interpreter, their machine code for every target, their text."""

import json
from pathlib import Path

import pytest
import torch

from esper.artifact.agree import TOLERANCE
from esper.artifact.contents import write_graph_file
from esper.artifact.regions import JOINED, PASSES, WHY_NOT_JOINED, last_region
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.plan import plan
from esper.errors import KernelFault
from esper.karn.templates import TEMPLATES
from esper.tezzeret import kernels
from esper.tezzeret.interpreted import check_interpreted
from esper.tezzeret.kernels import MACHINE_CODE, machine_code_files, source_files, triton_version, wide
from esper.tezzeret.pairs import MOST_MAP_CHANNELS as MOST_PAIR_MAP_CHANNELS
from esper.tezzeret.pairs import MOST_RANK
from esper.tezzeret.pairs import MOST_ROW_CHANNELS as MOST_PAIR_ROW_CHANNELS
from esper.tezzeret.regions import find_regions
from esper.tezzeret.resources import read_resources
from esper.tezzeret.rules import RULES
from tests.requirements import require
from tests.tezzeret import elsewhere
from tests.tezzeret.fusable import BROADCAST, CASES, CHAIN, GRAPHS, PAIR, SHARED, paired

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {torch.float32: TOLERANCE, torch.bfloat16: 3e-2, torch.float16: 4e-3}
TOKENS = Interface(Kind.TOKENS, 64, torch.bfloat16)


@pytest.fixture(scope="module", autouse=True)
def _triton():
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict:
    """What tests/tezzeret/interpreted_graphs.py found."""
    return elsewhere.interpreted("tests.tezzeret.interpreted_graphs", tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize(("name", "interface"), CASES, ids=str)
def test_value_and_every_gradient_are_those_of_float64(interpreted, name, interface):
    seen = interpreted["differences"][f"{name} {interface}"]
    assert seen.keys() >= {"output", "input gradient", "gradient of w"}
    # steps outside regions round to the interface's type as torch does, so that errors of a few roundings add up
    assert {tensor: gap for tensor, gap in seen.items() if not gap <= LIMITS[interface.dtype]} == {}


@pytest.mark.parametrize(("name", "results"), [("chain", 3), ("pair", 6)])
def test_a_seed_not_at_work_touches_nothing(interpreted, name, results):
    untouched = {state: [state != "3"] * results for state in ("3", "0", "62", "63", "255")}
    assert interpreted["dormant"][name] == untouched


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


PAIR_BOUNDS = [
    Interface(Kind.TOKENS, MOST_PAIR_ROW_CHANNELS, torch.bfloat16),
    Interface(Kind.TOKENS, MOST_PAIR_ROW_CHANNELS - 1, torch.bfloat16),
    Interface(Kind.TOKENS, MOST_PAIR_ROW_CHANNELS),
    Interface(Kind.MAP2D, MOST_PAIR_MAP_CHANNELS, torch.float16),
    Interface(Kind.MAP2D, MOST_PAIR_MAP_CHANNELS - 1),
    Interface(Kind.TOKENS, 255, torch.bfloat16),
    Interface(Kind.TOKENS, 768, torch.float16),
]


@pytest.mark.slow
@pytest.mark.parametrize("interface", PAIR_BOUNDS, ids=str)
@pytest.mark.parametrize("target", MACHINE_CODE)
def test_machine_code_of_pairs_spills_nothing_at_their_bounds(interface, target):
    for graph in (paired(1, bias=True), paired(MOST_RANK, bias=True), SHARED):
        concrete = plan(graph, interface)
        regions, reasons = find_regions(concrete)
        assert reasons == {}
        machine_code_files(regions, concrete, source_files(regions, concrete), target)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_float32_is_multiplied_as_float32(target, monkeypatch):
    """TF32, which has 10 bits of each factor, would be an instruction of the tensor cores."""
    assemblies = []

    def reading(binary, assembly, *rest):
        assemblies.append(assembly)
        return read_resources(binary, assembly, *rest)

    monkeypatch.setattr(kernels, "read_resources", reading)
    concrete = plan(PAIR, Interface(Kind.TOKENS, 64))
    regions, _ = find_regions(concrete)
    machine_code_files(regions, concrete, source_files(regions, concrete), target)
    assert len(assemblies) == 4  # the joined pair too
    for assembly in assemblies:
        assert "fma.rn.f32" in assembly
        assert "tf32" not in assembly
        assert "mma" not in assembly.replace("fma", "")


def spilling(monkeypatch, enough: int) -> list[int]:
    """A compiler whose code spills with fewer than `enough` warps; the warps it is asked for, in order."""
    asked = []

    def compiled(region, direction, module, concrete, target, number):
        asked.append(number)
        reason = "" if number >= enough else "it keeps 8 bytes on the stack"
        return {direction: b"%d" % number}, None, reason

    monkeypatch.setattr(kernels, "compiled", compiled)
    return asked


def test_a_pair_that_spills_by_its_own_warps_has_twice_as_many(monkeypatch):
    asked = spilling(monkeypatch, 8)
    concrete = plan(PAIR, TOKENS)
    regions, _ = find_regions(concrete)
    files = machine_code_files(regions, concrete, source_files(regions, concrete), "sm_80")
    assert files == dict.fromkeys((*PASSES, *JOINED), b"8")
    assert asked == [4, 8] * 4


@pytest.mark.parametrize(("graph", "attempts"), [(PAIR, [4, 8]), (CHAIN, [4])])
def test_what_spills_is_refused_after_as_many_attempts_as_there_are(graph, attempts, monkeypatch):
    asked = spilling(monkeypatch, 16)
    concrete = plan(graph, TOKENS)
    regions, _ = find_regions(concrete)
    with pytest.raises(KernelFault, match="region1_forward for sm_80: it keeps 8 bytes on the stack"):
        machine_code_files(regions, concrete, source_files(regions, concrete), "sm_80")
    assert asked == attempts


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


def test_a_value_that_rounding_carries_over_a_kink_is_no_fault():
    interface = Interface(Kind.TOKENS, 64, torch.bfloat16)
    graph = TEMPLATES["preactivation_conv"].graph
    concrete = plan(graph, interface)
    regions, _ = find_regions(concrete)
    seen = check_interpreted({"graph.json": write_graph_file(graph), **source_files(regions, concrete)}, interface)
    assert 0 < seen["bfloat16"] < LIMITS[torch.bfloat16]


def test_a_kernel_that_is_wrong_in_its_own_type_alone_is_found_in_every_draw():
    interface = Interface(Kind.TOKENS, 8, torch.bfloat16)
    concrete = plan(CHAIN, interface)
    regions, _ = find_regions(concrete)
    files = {"graph.json": write_graph_file(CHAIN), **source_files(regions, concrete)}
    right = files["triton/region1.py"]
    changed = right.replace(b"* (1.0 - v5 * v5)", b"* (1.0 - v5 * v5 * (v0_ptr.dtype.element_ty == tl.float32))")
    assert changed != right
    with pytest.raises(KernelFault, match=r"from float64's in torch.bfloat16, at most .* in each of 8 draws"):
        check_interpreted({**files, "triton/region1.py": changed}, interface)


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
