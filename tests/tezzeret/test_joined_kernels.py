"""The kernels that blend: their numbers by Triton's interpreter, their machine code, artifacts with and without."""

import json
from pathlib import Path

import pytest
import torch

from esper.artifact.agree import TOLERANCE
from esper.artifact.bundle import Artifact, verify
from esper.artifact.contents import check_names, open_contents, write_graph_file
from esper.artifact.fused import FusedForm
from esper.artifact.regions import JOINED, PASSES, SEARCH, WHY_NOT_JOINED, last_region, read_regions
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.plan import plan
from esper.errors import Corrupt, InvalidRequest, KernelFault
from esper.karn.templates import TEMPLATES
from esper.tezzeret import kernels
from esper.tezzeret import search as searching
from esper.tezzeret.compile import build
from esper.tezzeret.interpreted import check_interpreted
from esper.tezzeret.kernels import MACHINE_CODE, machine_code_files, source_files, triton_version
from esper.tezzeret.regions import find_regions
from esper.tezzeret.search import search
from tests.artifact.samples import ROOTS
from tests.requirements import require
from tests.tezzeret import elsewhere
from tests.tezzeret.fusable import AROUND, CHAIN, JOINED_CASES

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {torch.float32: TOLERANCE, torch.bfloat16: 3e-2, torch.float16: 4e-3}
TOKENS = Interface(Kind.TOKENS, 64, torch.bfloat16)
HIGHWAY, SMALL = TEMPLATES["highway"].graph, Interface(Kind.TOKENS, 8)


@pytest.fixture(scope="module", autouse=True)
def _triton():
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict:
    """What tests/tezzeret/interpreted_joins.py found."""
    return elsewhere.interpreted("tests.tezzeret.interpreted_joins", tmp_path_factory.mktemp("joins"))


@pytest.mark.parametrize(("name", "interface"), JOINED_CASES, ids=str)
def test_value_and_every_gradient_are_those_of_float64_alphas_among_them(interpreted, name, interface):
    seen = interpreted["differences"][f"{name} {interface}"]
    assert seen.keys() >= {"output", "input gradient", "alpha", "gradient of w"}
    assert {tensor: gap for tensor, gap in seen.items() if not gap <= LIMITS[interface.dtype]} == {}


@pytest.mark.parametrize(("name", "interface"), JOINED_CASES, ids=str)
def test_alpha_0_is_the_host_and_convex_alpha_1_the_branch_bit_for_bit(interpreted, name, interface):
    ends = interpreted["ends"][f"{name} {interface}"]
    assert ends == {"residual 0": True, "convex 0": True, "convex 1": True, "residual 1": True}


def test_a_seed_not_at_work_touches_nothing(interpreted):
    assert interpreted["dormant"] == {"3": False, "0": True, "62": True, "63": True, "255": True}


def test_a_graft_uses_them_for_a_whole_host_where_no_guard_reads_the_branch(interpreted):
    joined, plain = ([f"region1_{one}" for one in some] for some in (JOINED, PASSES))
    assert interpreted["grafted"] == {
        "residual": joined,
        "convex": joined,
        "gated": plain,
        "span": plain,
        "guarded": plain,
    }


def test_of_random_graphs_joining_is_the_form_and_then_the_op(interpreted):
    fused, others = interpreted["tried"]  # that they agree is asserted there
    assert fused >= 8 and others >= 3


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_machine_code_takes_alpha_from_any_row_and_settings_at_run_time(target):
    concrete = plan(AROUND, TOKENS)
    regions, _ = find_regions(concrete)
    last = last_region(regions, concrete)
    files = machine_code_files(regions, concrete, source_files(regions, concrete), target)
    assert {name.partition(".")[0] for name in files if "joined" in name} == {
        f"triton/{last.kernel(j)}" for j in JOINED
    }
    for direction, settings in (("joined_forward", ["convex"]), ("joined_backward", ["convex", "sums"])):
        assert files[f"triton/{last.kernel(direction)}.{MACHINE_CODE[target]}"][:4] == b"\x7fELF"
        told = json.loads(files[f"triton/{last.kernel(direction)}.json"])
        takes = {one["name"]: one for one in told["parameters"]}
        assert takes["alpha_ptr"] == {"name": "alpha_ptr", "type": "*fp32", "bytes": 8, "divisible_by": 1}
        assert (takes["host_ptr"]["type"], takes["host_ptr"]["divisible_by"]) == ("*bf16", 16)
        assert [name for name, one in takes.items() if one["type"] == "i32"] == [*settings, "positions"]


@pytest.mark.parametrize("tensor", ["output", "input gradient", "input gradient, convex", "gradient of alpha"])
def test_the_forge_finds_a_blend_that_is_not_the_ops(interpreted, tensor):
    said = interpreted["mutants"][tensor]
    assert said.startswith(f"the {tensor.partition(',')[0]} of the joined Triton form is ")
    assert "from float64's in torch.float32" in said


def test_the_forge_finds_a_host_that_alpha_0_changes(interpreted):
    assert interpreted["mutants"]["alpha 0"] == "the joined Triton form at alpha 0 is not the host in torch.float32"


def test_they_are_compared_before_an_artifact_is_made():
    concrete = plan(CHAIN, SMALL)
    regions, _ = find_regions(concrete)
    files = {"graph.json": write_graph_file(CHAIN), **source_files(regions, concrete)}
    source = files["triton/region1.py"].replace(b"host + alpha * v", b"host - alpha * v")
    with pytest.raises(KernelFault, match="the output of the joined Triton form is"):
        check_interpreted({**files, "triton/region1.py": source}, SMALL)


def test_a_graph_whose_last_step_is_torchs_has_none():
    interface, graph = Interface(Kind.TOKENS, 8), TEMPLATES["swiglu_mlp"].graph
    concrete = plan(graph, interface)
    regions, _ = find_regions(concrete)
    assert regions and last_region(regions, concrete) is None
    files = source_files(regions, concrete)
    assert not any(b"joined" in data for data in files.values())
    assert not any("joined" in name for name in machine_code_files(regions, concrete, files, "sm_90"))


# The form


def form_of(**settings) -> FusedForm:
    concrete = plan(CHAIN, SMALL)
    regions, _ = find_regions(concrete)

    def launch(*_arguments):
        raise AssertionError("launched")

    return FusedForm(concrete, regions, launch, torch.zeros(1, dtype=torch.uint8), 1, torch.float32, **settings)


HOST, ALPHA = torch.zeros(2, 5, 8), torch.tensor(0.5)
TAKEN = {
    "as compiled for": (HOST, ALPHA, True),
    "another type": (HOST.half(), ALPHA, False),
    "another order": (torch.zeros(5, 2, 8).transpose(0, 1), ALPHA, False),
    "alpha in float64": (HOST, ALPHA.double(), False),
    "alpha elsewhere": (HOST, ALPHA.to("meta"), False),
}


@pytest.mark.parametrize("case", TAKEN)
def test_it_is_offered_for_what_the_kernels_take(case):
    host, alpha, taken = TAKEN[case]
    assert form_of(joins=True).joins(host, alpha) == taken
    assert not form_of().joins(host, alpha)


def test_where_it_is_not_offered_it_is_refused():
    with pytest.raises(InvalidRequest, match="call the form, then esper"):
        form_of().joined(HOST, ALPHA, torch.ones(8), torch.ones(8), convex=False)


# Artifacts


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return build(HIGHWAY, SMALL, "sm_90", "standard")


SCRIPT = """
from esper.blueprint.interface import Interface, Kind
from esper.karn.templates import TEMPLATES
from esper.tezzeret.compile import build
print(build(TEMPLATES["highway"].graph, Interface(Kind.TOKENS, 8), "sm_90", "standard").artifact_id)
"""


def test_an_artifact_holds_them_and_another_folder_makes_the_same_id(artifact, tmp_path):
    made = {f"triton/region1_{one}.{suffix}" for one in (*PASSES, *JOINED) for suffix in ("cubin", "json")}
    assert {name for name in artifact.files if name.startswith("triton/region1_")} == made
    open_contents(verify(artifact, ROOTS, require=()), artifact.files)
    assert elsewhere.printed(SCRIPT, tmp_path) == artifact.artifact_id


def test_aggressive_gives_them_the_tile_of_the_plain_pair(monkeypatch):
    monkeypatch.setattr(searching, "MOST_KERNELS", 8)
    concrete = plan(CHAIN, Interface(Kind.TOKENS, 1024, torch.bfloat16))
    regions, _ = find_regions(concrete)
    files = search(regions, concrete, source_files(regions, concrete), "sm_90")
    (region,) = read_regions(files["triton/regions.json"], concrete)
    assert region.tile_rows > regions[0].tile_rows
    (told,) = json.loads(files[SEARCH])["regions"]
    for direction, warps in zip(JOINED, told["warps"], strict=True):
        described = json.loads(files[f"triton/region1_{direction}.json"])
        assert described["constants"] == {"ROWS": region.tile_rows, "COLS": region.tile_columns}
        assert described["num_warps"] == warps
    assert {one["pass"] for one in told["kernels"]} == set(PASSES)


def _spills(files, seen, why):
    return files, seen, "it keeps 8 bytes on the stack and 0 in local memory"


def _raises(*_made):
    raise KernelFault("Triton raised at 0x7f00") from RuntimeError("PassManager::run failed")


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [(_spills, "it keeps 8 bytes on the stack and 0 in local memory"), (_raises, "RuntimeError")],
)
def test_one_that_may_not_be_used_leaves_the_pair_out_and_says_why(monkeypatch, artifact, compiler, reason):
    compiled = kernels.compiled

    def some(region, direction, *others):
        made = compiled(region, direction, *others)
        return compiler(*made) if direction == "joined_backward" else made

    monkeypatch.setattr(kernels, "compiled", some)
    concrete = plan(HIGHWAY, SMALL)
    regions, _ = find_regions(concrete)
    files = machine_code_files(regions, concrete, source_files(regions, concrete), "sm_90")
    assert json.loads(files[WHY_NOT_JOINED]) == {"kernel": "region1_joined_backward", "reason": reason}
    held = {name for name in artifact.files if name.startswith("triton/region1_")}
    assert files.keys() - {WHY_NOT_JOINED} == {name for name in held if "joined" not in name}
    check_names(files)


def test_names_of_its_files_are_known_and_no_others():
    check_names([f"triton/region1_{one}.{suffix}" for one in JOINED for suffix in ("json", "cubin", "hsaco")])
    for name in ("triton/region1_joined.py", "triton/region1_joined_sideways.cubin", "triton/region1_joined.json"):
        with pytest.raises(Corrupt, match="is none that a pipeline writes"):
            check_names([name])


def test_the_text_says_what_its_places_hold():
    concrete = plan(AROUND, TOKENS)
    regions, _ = find_regions(concrete)
    text = source_files(regions, concrete)[regions[-1].source].decode()
    assert "v5_ptr is where that is written,\nand d5_ptr its gradient." in text
    assert max(map(len, text.splitlines())) <= 120
