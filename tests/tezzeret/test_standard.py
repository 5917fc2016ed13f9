"""Pipeline standard: what its artifacts hold, the same bytes from two clean directories, the same function anywhere."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

from esper.artifact.agree import draw_weights, outcome
from esper.artifact.attest import BUILT, PROMOTED
from esper.artifact.body import EXPORTED
from esper.artifact.bundle import Artifact, bundle, sign, verify
from esper.artifact.contents import open_contents
from esper.artifact.regions import REGIONS, read_regions
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.plan import plan
from esper.errors import Corrupt
from esper.karn.templates import TEMPLATES
from esper.kasmina.cache import KernelCache
from esper.kasmina.fused import fused_form
from esper.kasmina.loader import KernelLoader
from esper.tezzeret.compile import build, compile_kernel, reference, toolchain
from esper.tezzeret.kernels import triton_version
from tests.artifact.samples import EVALUATION, FORGE, ROOTS
from tests.requirements import require
from tests.tezzeret.elsewhere import printed
from tests.tezzeret.fusable import ADAPTER

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
GRAPH, INTERFACE = TEMPLATES["swiglu_mlp"].graph, Interface(Kind.TOKENS, 8)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")
    return compile_kernel(GRAPH, INTERFACE, "sm_90", "standard", FORGE)


@pytest.fixture(scope="module")
def contents(artifact):
    return open_contents(verify(artifact, ROOTS, require=(BUILT,)), artifact.files)


def test_the_files_are_fasts_and_the_graph_and_the_kernels(artifact, contents):
    fast = build(GRAPH, INTERFACE, "cpu", "fast")
    assert fast.files.items() <= artifact.files.items()
    more = [
        f"triton/region1_{direction}.{suffix}" for direction in ("backward", "forward") for suffix in ("cubin", "json")
    ]
    expected = [*fast.files, EXPORTED, "triton/region1.py", "triton/regions.json", *more]
    assert sorted(artifact.files) == sorted(expected)
    assert contents.body.toolchain == toolchain("standard")
    assert contents.body.toolchain["triton"] == triton_version()


def test_the_exported_graph_is_the_same_function_for_other_tools(artifact):
    """Esper never loads one; a test may, as a person would."""
    module = torch.export.load(io.BytesIO(artifact.files[EXPORTED])).module()
    body = reference(GRAPH, INTERFACE)
    h = INTERFACE.example(3, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(h), body(h))
    assert dict(module.named_parameters()).keys() == dict(body.named_parameters()).keys()


def test_there_is_no_pickle_in_the_exported_graph(artifact):
    with zipfile.ZipFile(io.BytesIO(artifact.files[EXPORTED])) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            assert name.endswith((".json", "archive_format", "archive_version", "version", "byteorder")) or (
                "/weights/weight_" in name or not data
            ), name
            assert str(ROOT).encode() not in data, name


SCRIPT = """
from esper.blueprint.interface import Interface, Kind
from esper.karn.templates import TEMPLATES
from esper.tezzeret.compile import build
artifact = build(TEMPLATES["swiglu_mlp"].graph, Interface(Kind.TOKENS, 8), "sm_90", "standard")
print(artifact.artifact_id)
"""


def test_another_process_in_another_folder_makes_the_same_id(artifact, tmp_path):
    assert printed(SCRIPT, tmp_path) == artifact.artifact_id


def test_without_the_architecture_the_same_function_runs_with_the_same_parameters(artifact, contents):
    body = reference(GRAPH, INTERFACE)
    weights = draw_weights(body, torch.Generator().manual_seed(3))
    h = INTERFACE.example(2, 5, generator=torch.Generator().manual_seed(4))
    form, reason = fused_form(contents, artifact.files, CPU)
    assert (form, reason) == (None, "the kernels are for sm_90 and the device is cpu")
    wanted = outcome(lambda x, *p: body.functional(p, x), h, weights)
    for got, want in zip(outcome(contents.form, h, weights), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_the_executor_loads_it_on_a_cpu_and_says_why_its_kernels_rest(artifact, tmp_path):
    promoted = sign(artifact, EVALUATION, PROMOTED, {"pipeline": "standard"})
    cache = KernelCache(tmp_path, ROOTS, lambda _id: promoted)
    loaded = KernelLoader(cache).load(artifact.artifact_id, INTERFACE, [(2, 5)])
    assert loaded.chosen in ("body", "script")
    assert loaded.why_not_fused == "the kernels are for sm_90 and the device is cpu"


PAIR_SCRIPT = """
from esper.blueprint.interface import Interface, Kind
from esper.tezzeret.compile import build
from tests.tezzeret.fusable import ADAPTER
for pipeline in ("standard", "aggressive"):
    print(build(ADAPTER, Interface(Kind.TOKENS, 8), "sm_90", pipeline).artifact_id)
"""


def test_a_low_rank_pair_is_in_the_kernels_and_the_id_is_the_same_in_another_folder(tmp_path):
    made = [build(ADAPTER, INTERFACE, "sm_90", pipeline) for pipeline in ("standard", "aggressive")]
    for artifact in made:
        (region,) = read_regions(artifact.files[REGIONS], plan(ADAPTER, INTERFACE))
        assert len(region.pairs) == 1
        assert b"low_rank" in artifact.files[region.source]
        described = json.loads(artifact.files["triton/region1_backward.json"])
        assert {name for name, _ in region.kept} < {one["name"] for one in described["parameters"]}
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    assert printed(PAIR_SCRIPT, tmp_path).split() == [artifact.artifact_id for artifact in made]


def test_a_design_with_nothing_to_fuse_is_an_artifact_without_kernels():
    interface = Interface(Kind.TOKENS, 8)
    made = build(TEMPLATES["low_rank"].graph, interface, "sm_90", "standard")
    assert [name for name in made.files if name.startswith("triton/")] == ["triton/regions.json"]
    held = open_contents(verify(made, ROOTS, require=()), made.files)
    assert fused_form(held, made.files, CPU) == (None, "the blueprint has nothing to fuse")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("triton/regions.json", b'{"regions":[]', "triton/regions.json"),
        ("triton/regions.json", b'{"regions":[{}]}', "inputs is missing"),
        ("triton/notes.txt", b"", "'triton/notes.txt' is none that a pipeline writes"),
        ("triton/region1_sideways.cubin", b"", "is none that a pipeline writes"),
        ("extra.so", b"", "'extra.so' is none that a pipeline writes"),
    ],
)
def test_files_that_are_not_a_pipelines_are_refused(artifact, contents, name, data, said):
    files = {**artifact.files, name: data}
    made = bundle(contents.body, files)
    body = verify(made, ROOTS, require=())
    with pytest.raises(Corrupt, match=said):
        fused_form(open_contents(body, files), files, CPU)
