"""Pipeline aggressive: what its artifacts hold, the same bytes from two folders, and that its failure is its own."""

import json

import pytest
import torch

from esper.artifact.agree import draw_weights, outcome
from esper.artifact.attest import BUILT, PROMOTED
from esper.artifact.bundle import Artifact, sign, verify
from esper.artifact.contents import open_contents
from esper.artifact.regions import SEARCH, WHY_NOT_JOINED, Region, read_regions
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.matching import match
from esper.blueprint.plan import Plan, plan
from esper.errors import KernelFault
from esper.karn.templates import TEMPLATES
from esper.kasmina.cache import KernelCache
from esper.kasmina.loader import KernelLoader
from esper.tezzeret import codec
from esper.tezzeret import compile as compiling
from esper.tezzeret.compile import build, compile_kernel, reference, request_key, toolchain
from esper.tezzeret.cost_model import DEVICES, LAUNCH_NS
from esper.tezzeret.job import compile_job
from esper.tezzeret.kernels import MACHINE_CODE, triton_version
from esper.tezzeret.regions import find_regions
from esper.tezzeret.traffic import SIZES, programs_of, work_of
from tests.artifact.samples import EVALUATION, FORGE, ROOTS
from tests.requirements import require
from tests.tezzeret.elsewhere import printed

# two steps, a norm with parameters: standard's tile is not the best
GRAPH, INTERFACE = TEMPLATES["preactivation_conv"].graph, Interface(Kind.TOKENS, 256)


@pytest.fixture(scope="module", autouse=True)
def _triton():
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return compile_kernel(GRAPH, INTERFACE, "sm_90", "aggressive", FORGE)


@pytest.fixture(scope="module")
def standard() -> Artifact:
    return build(GRAPH, INTERFACE, "sm_90", "standard")


def test_the_files_are_standards_and_the_record_of_the_search(artifact, standard):
    assert artifact.files.keys() == standard.files.keys() | {SEARCH}
    changed = {name for name in standard.files if standard.files[name] != artifact.files[name]}
    tiled = {f"triton/region1_{one}.{suffix}" for one in ("forward", "backward") for suffix in ("cubin", "json")}
    assert changed == {"triton/regions.json", *tiled}
    contents = open_contents(verify(artifact, ROOTS, require=(BUILT,)), artifact.files)
    assert contents.body.pipeline == "aggressive"
    assert contents.body.toolchain == toolchain("aggressive")
    (region,) = read_regions(artifact.files["triton/regions.json"], plan(GRAPH, INTERFACE))
    (told,) = json.loads(artifact.files[SEARCH])["regions"]
    assert told["positions"] == region.tile_rows > 4
    assert len(told["kernels"]) > 10


def test_an_order_with_no_time_to_search_gets_standards_kernels_and_says_so(standard):
    order = codec.Order(GRAPH, blueprint_id(GRAPH), INTERFACE, "sm_90", "aggressive", limit_s=0.0)
    _, made = codec.read_reply(compile_job(codec.write_order(order)))
    assert made is not None
    assert {name: made.files[name] for name in standard.files} == standard.files
    (told,) = json.loads(made.files[SEARCH])["regions"]
    assert len(told["kernels"]) == 2
    assert told["not_weighed"].endswith("tiles: the time of the search was used up")


SCRIPT = """
from esper.blueprint.interface import Interface, Kind
from esper.karn.templates import TEMPLATES
from esper.tezzeret.compile import build
interface = Interface(Kind.TOKENS, 256)
print(build(TEMPLATES["preactivation_conv"].graph, interface, "sm_90", "aggressive").artifact_id)
"""


def test_another_process_in_another_folder_makes_the_same_id(artifact, tmp_path):
    assert printed(SCRIPT, tmp_path) == artifact.artifact_id


def test_the_executor_runs_the_same_function_where_the_architecture_is_not(artifact, tmp_path):
    promoted = sign(artifact, EVALUATION, PROMOTED, {"pipeline": "aggressive"})
    loaded = KernelLoader(KernelCache(tmp_path, ROOTS, lambda _id: promoted)).load(
        artifact.artifact_id, INTERFACE, [(2, 5)]
    )
    assert loaded.why_not_fused == "the kernels are for sm_90 and the device is cpu"
    contents = open_contents(verify(artifact, ROOTS, require=(BUILT,)), artifact.files)
    body = reference(GRAPH, INTERFACE)
    weights = draw_weights(body, torch.Generator().manual_seed(3))
    h = INTERFACE.example(2, 5, generator=torch.Generator().manual_seed(4))
    wanted = outcome(lambda x, *p: body.functional(p, x), h, weights)
    for got, want in zip(outcome(contents.form, h, weights), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_a_request_for_it_is_another_than_standards():
    keys = {request_key("a" * 64, INTERFACE, "sm_90", pipeline) for pipeline in ("standard", "aggressive")}
    assert len(keys) == 2


def test_a_design_with_nothing_to_fuse_has_nothing_to_search():
    made = build(TEMPLATES["low_rank"].graph, Interface(Kind.TOKENS, 8), "sm_90", "aggressive")
    assert json.loads(made.files[SEARCH])["regions"] == []


def test_its_failure_names_it_and_leaves_fast_and_standard_usable(monkeypatch):
    def broken(*_arguments):
        raise KernelFault("region 1 for sm_90: no variant may be used (forward, 1 positions, 4 warps: it spills)")

    monkeypatch.setattr(compiling, "search", broken)
    graph, interface = TEMPLATES["swiglu_mlp"].graph, Interface(Kind.TOKENS, 8)
    said = {}
    for pipeline, target in (("aggressive", "sm_90"), ("standard", "sm_90"), ("fast", "cpu")):
        order = codec.Order(graph, blueprint_id(graph), interface, target, pipeline)
        record, made = codec.read_reply(compile_job(codec.write_order(order)))
        said[pipeline] = record.failure.message
        assert (made is None) == (pipeline == "aggressive")
    assert (
        said["aggressive"]
        == "pipeline aggressive: region 1 for sm_90: no variant may be used (forward, 1 positions, 4 warps: it spills)"
    )
    assert not said["standard"]
    assert not said["fast"]


def _place(title: str) -> Interface | None:
    """Where a design of the library has something to search."""
    graph = TEMPLATES[title].graph
    options = [Interface(kind, 64) for kind in (Kind.TOKENS, Kind.MAP2D)]
    return next((one for one in options if match(graph, one)[0] and find_regions(plan(graph, one))[0]), None)


@pytest.mark.slow
@pytest.mark.parametrize("target", MACHINE_CODE)
@pytest.mark.parametrize("title", [title for title in TEMPLATES if _place(title)])
def test_every_design_of_the_library_has_tiles_that_may_be_used(title, target):
    """And none so slow by the model that two kernels in its place, which move 1.6 times its bytes, could be faster."""
    made = build(TEMPLATES[title].graph, _place(title), target, "aggressive")
    assert WHY_NOT_JOINED not in made.files
    concrete = plan(TEMPLATES[title].graph, _place(title))
    regions = read_regions(made.files["triton/regions.json"], concrete)
    for told, region in zip(json.loads(made.files[SEARCH])["regions"], regions, strict=True):
        took_ns = moving_ns = 0.0
        for direction, warps in zip(("forward", "backward"), told["warps"], strict=True):
            place = (direction, told["positions"], warps)
            (own,) = [k for k in told["kernels"] if (k["pass"], k["positions"], k["warps"]) == place]
            assert not own["why_out"]
            assert own["at_once"] >= 1
            took_ns += own["ns"][1] - LAUNCH_NS
            moving_ns += _moving_ns(region, direction, concrete, target)
        assert took_ns < 1.6 * moving_ns


def _moving_ns(region: Region, direction: str, concrete: Plan, target: str) -> float:
    """Of the larger size, at all of the device's bandwidth, partial sums among it."""
    work, (samples, positions) = work_of(region, direction, concrete), SIZES[1]
    sums = programs_of(region, samples, positions) * work.bytes_per_program
    return (samples * positions * work.bytes_per_position + sums) / DEVICES[target].bytes_per_ns
