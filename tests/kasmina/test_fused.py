"""Which of an artifact's Triton kernels are loaded: all of it, the pair that blends among them where it was made."""

from types import SimpleNamespace

import pytest
import torch

from esper.artifact.attest import BUILT, PROMOTED
from esper.artifact.body import read_body
from esper.artifact.bundle import Artifact, bundle, sign, verify
from esper.artifact.contents import open_contents
from esper.artifact.regions import JOINED, PASSES, WHY_NOT_JOINED, read_regions
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.plan import plan
from esper.errors import Corrupt, KernelFault
from esper.karn.templates import TEMPLATES
from esper.kasmina import fused as fused_module
from esper.kasmina import loader as loader_module
from esper.kasmina.cache import KernelCache
from esper.kasmina.fused import fused_form, joined_kernels
from esper.kasmina.loader import KernelLoader
from esper.tezzeret.compile import build
from esper.tezzeret.kernels import triton_version
from tests.artifact.samples import EVALUATION, FORGE, ROOTS
from tests.requirements import require

GRAPH, INTERFACE = TEMPLATES["highway"].graph, Interface(Kind.TOKENS, 8)
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")
    return build(GRAPH, INTERFACE, "sm_90", "standard")


def with_files(artifact: Artifact, files: dict[str, bytes]) -> Artifact:
    """An artifact of other files, signed by everybody all the same."""
    made = bundle(read_body(artifact.manifest.body), files)
    return sign(sign(made, FORGE, BUILT, {}), EVALUATION, PROMOTED, {})


@pytest.fixture(scope="module")
def earlier(artifact) -> Artifact:
    """As artifacts were before any kernel blended."""
    files = {name: data for name, data in artifact.files.items() if "joined" not in name}
    source = files["triton/region1.py"].decode()
    return with_files(
        artifact, {**files, "triton/region1.py": source.partition("@triton.jit\ndef blended")[0].encode()}
    )


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Names of the kernels that were handed to the driver; no device is needed."""
    names: list[str] = []

    def load_image(metadata, image, device):
        names.append(metadata["name"])
        return SimpleNamespace(launch=lambda grid, **arguments: names.append(f"launched {metadata['name']}"))

    monkeypatch.setattr(fused_module.cubin, "load_image", load_image)
    monkeypatch.setattr(fused_module.torch, "full", lambda *_, **__: torch.ones(1, dtype=torch.uint8))
    return names


def opened(artifact: Artifact):
    return open_contents(verify(artifact, ROOTS, require=()), artifact.files)


def test_the_pair_that_blends_is_loaded_and_offered(artifact, loaded):
    form, reason = fused_form(opened(artifact), artifact.files, CUDA)
    assert reason == ""
    assert loaded == [f"region1_{direction}" for direction in (*PASSES, *JOINED)]
    assert form.joins(torch.zeros(2, 3, 8), torch.tensor(0.5))


@pytest.mark.parametrize("why_not", [{}, {WHY_NOT_JOINED: b'{"kernel":"region1_joined_forward","reason":"it spills"}'}])
def test_an_artifact_without_it_gives_a_form_that_does_not_blend(earlier, loaded, why_not):
    made = with_files(earlier, {**earlier.files, **why_not})
    form, reason = fused_form(opened(made), made.files, CUDA)
    assert reason == ""
    assert loaded == [f"region1_{direction}" for direction in PASSES]
    assert not form.joins(torch.zeros(2, 3, 8), torch.tensor(0.5))


def test_half_of_it_is_refused(artifact, loaded):
    files = {name: data for name, data in artifact.files.items() if name != "triton/region1_joined_backward.cubin"}
    with pytest.raises(Corrupt, match=r"'triton/region1_joined_backward.cubin' is missing; region 1 needs it"):
        fused_form(opened(with_files(artifact, files)), files, CUDA)


def test_that_of_a_region_which_does_not_make_the_last_value_is_refused(artifact):
    (last,) = read_regions(artifact.files["triton/regions.json"], plan(GRAPH, INTERFACE))
    names = [f"triton/region2_{direction}.json" for direction in JOINED]
    for region in (last, None):
        with pytest.raises(Corrupt, match="region2_joined_backward is of a region that does not make"):
            joined_kernels(region, names)
    assert joined_kernels(last, ["triton/region1_forward.json", WHY_NOT_JOINED]) == ()


def test_an_earlier_artifact_is_loaded_and_runs_as_it_did(artifact, earlier, tmp_path):
    h = INTERFACE.example(2, 5, generator=torch.Generator().manual_seed(4))
    values = []
    for number, one in enumerate((artifact, earlier)):
        promoted = with_files(one, dict(one.files))
        cache = KernelCache(tmp_path / str(number), ROOTS, lambda _id, held=promoted: held)
        got = KernelLoader(cache).load(promoted.artifact_id, INTERFACE, [(2, 5)])
        assert got.why_not_fused == "the kernels are for sm_90 and the device is cpu"
        body = got.kernel.body(1, torch.device("cpu"))
        call = got.kernel.form or (lambda h, *p, body=body: body.functional(p, h))
        values.append(call(h, *body.ordered_parameters()))
    torch.testing.assert_close(*values)


class Blending:
    """A form as good as the body, whose blend is what `wrong` makes of it."""

    def __init__(self, call, wrong) -> None:
        self.call, self.wrong, self.asked = call, wrong, []

    def __call__(self, h, *parameters):
        return self.call(h, *parameters)

    def joins(self, host, alpha):
        return True

    def joined(self, host, alpha, *parameters, convex):
        self.asked.append(convex)
        branch = self(host, *parameters)
        right = torch.lerp(host, branch, alpha) if convex else torch.addcmul(host, branch, alpha)
        return self.wrong(right, convex)


@pytest.mark.parametrize(
    ("wrong", "asked"),
    [
        (lambda right, convex: right, [False, True]),
        (lambda right, convex: right + 1, [False]),
        (lambda right, convex: right + convex, [False, True]),
    ],
)
def test_what_a_form_blends_is_compared_before_it_may_run(artifact, monkeypatch, tmp_path, wrong, asked):
    promoted = with_files(artifact, dict(artifact.files))
    forms = []

    def blending(contents, files, device):
        forms.append(Blending(contents.form, wrong))
        return forms[-1], ""

    monkeypatch.setattr(loader_module, "fused_form", blending)
    loader = KernelLoader(KernelCache(tmp_path, ROOTS, lambda _id: promoted))
    if wrong(0, True) == 0:
        loader.load(promoted.artifact_id, INTERFACE, [(2, 5)])
    else:
        with pytest.raises(KernelFault, match="differs from its graph"):
            loader.load(promoted.artifact_id, INTERFACE, [(2, 5)])
    assert forms[0].asked == asked
