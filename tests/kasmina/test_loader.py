"""Loading: trusted, for this interface, equal to its graph, warm, in its fastest form, and of no effect on a run."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.artifact.attest import BUILT, PROMOTED
from esper.artifact.body import GRAPH, MODULE, WEIGHTS, read_body
from esper.artifact.bundle import Artifact, bundle, sign
from esper.artifact.script import save_script
from esper.blueprint.emit import emit_function, torchscript
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.lower import lower
from esper.errors import Corrupt, InvalidRequest, KernelFault, ShapeMismatch, Untrusted
from esper.karn.templates import TEMPLATES
from esper.kasmina import loader as loader_module
from esper.kasmina.cache import DISK, LIBRARY, MEMORY, KernelCache, folder_of
from esper.kasmina.loader import KernelLoader, default_profiles, parse
from tests.artifact.samples import EVALUATION, FORGE, MAP, ROOTS, built, promoted

NAME = promoted().artifact_id
TOKENS = Interface(Kind.TOKENS, 8, torch.bfloat16, causal=True)


class Setup:
    """A loader over a library that holds one artifact."""

    def __init__(self, folder: Path, artifact: Artifact | None = None) -> None:
        self.artifact = artifact or promoted()
        self.asked = 0
        self.reports: list[tuple[str, str]] = []
        self.cache = KernelCache(folder, ROOTS, self.fetch, report=lambda n, r: self.reports.append((n, r)))
        self.loader = KernelLoader(self.cache)

    def fetch(self, artifact_id: str) -> Artifact:
        self.asked += 1
        return self.artifact

    def load(self, interface: Interface = MAP, **settings):
        return self.loader.load(self.artifact.artifact_id, interface, **settings)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def changed(**files: bytes) -> Artifact:
    """A promoted kernel with other files, signed by everybody all the same."""
    body = replace(read_body(built().manifest.body), files={})
    made = bundle(body, {**built().files, **files})
    return sign(sign(made, FORGE, BUILT, {}), EVALUATION, PROMOTED, {})


def unsigned() -> Artifact:
    manifest = ArtifactManifest(artifact_id=NAME, body=built().manifest.body)
    return Artifact(manifest, built().files)


def source(before: str = "", after: str = "") -> bytes:
    text = torchscript(emit_function(TEMPLATES["conv3"].graph, MAP, "forward"))
    assert before in text
    return save_script(text.replace(before, after))


@pytest.mark.parametrize(("title", "interface"), [("conv3", MAP), ("single_head_attention", TOKENS)], ids=str)
def test_a_kernel_is_loaded_with_its_graph_and_computes_it(tmp_path, title, interface):
    artifact = promoted(title, interface)
    loaded = Setup(tmp_path, artifact).load(interface)
    kernel = loaded.kernel
    assert (kernel.artifact_id, kernel.interface) == (artifact.artifact_id, interface)
    assert kernel.graph == TEMPLATES[title].graph
    assert kernel.blueprint_id == read_body(artifact.manifest.body).blueprint_id
    body = kernel.body(7, torch.device("cpu"))
    h = interface.example(2, *[3] * interface.kind.position_dims)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        if kernel.form is not None:
            torch.testing.assert_close(kernel.form(h, *body.ordered_parameters()), body(h))


def test_timings_tell_the_parts_apart(setup):
    first, second = setup.load(), setup.load()
    assert first.timings.source == LIBRARY
    parts = (first.timings.fetch_ms, first.timings.verify_ms, first.timings.build_ms, first.timings.warm_up_ms)
    assert min(parts[1:]) > 0
    assert first.timings.total_ms == pytest.approx(sum(parts))
    assert second.timings.source == MEMORY
    assert second.timings.total_ms == 0
    assert second.kernel is first.kernel
    assert second.chosen == first.chosen == ("body" if first.kernel.form is None else "script")
    again = KernelLoader(KernelCache(setup.cache._folder, ROOTS, setup.fetch)).load(NAME, MAP)
    assert again.timings.source == DISK
    assert setup.asked == 1


def test_the_faster_form_is_taken(setup, monkeypatch):
    """Whichever it is: the clock says so, not the code."""
    for script_s, chosen in ((1.0, "script"), (3.0, "body"), (2.0, "body")):

        def step_s(call, leaves, script_s=script_s):
            return script_s if isinstance(call, torch._C.ScriptMethod) else 2.0

        monkeypatch.setattr(loader_module, "_step_s", step_s)
        loaded = setup.load()
        assert loaded.chosen == chosen
        assert (loaded.kernel.form is None) == (chosen == "body")
        setup.cache.evict(NAME)


def test_warm_up_takes_three_steps_and_more_of_each_profile(setup, monkeypatch):
    seen = []
    genuine = loader_module._step_s

    def step_s(call, leaves):
        seen.append((isinstance(call, torch._C.ScriptMethod), tuple(leaves[0].shape)))
        return genuine(call, leaves)

    monkeypatch.setattr(loader_module, "_step_s", step_s)
    setup.load(profiles=[(2, 5, 5), (3, 4, 6)])
    for shape in ((2, 8, 5, 5), (3, 8, 4, 6)):
        for script in (True, False):
            assert seen.count((script, shape)) >= 3
    assert {shape for _, shape in seen} == {(2, 8, 5, 5), (3, 8, 4, 6)}


def test_a_form_has_its_parameters_in_canonical_order(setup, monkeypatch):
    monkeypatch.setattr(
        loader_module, "_step_s", lambda call, _: 1.0 if isinstance(call, torch._C.ScriptMethod) else 2.0
    )
    kernel = setup.load().kernel
    body = lower(kernel.graph, kernel.interface)
    names = [argument.name for argument in kernel.form.schema.arguments[1:]]
    assert names == ["x", *(f"p_{name}" for name in body.parameter_names)]


@pytest.mark.parametrize(
    ("artifact", "reason"),
    [
        (built(), 'no "promoted" attestation'),
        (sign(built(), FORGE, PROMOTED, {}), "is no trusted evaluation key"),
        (sign(unsigned(), EVALUATION, PROMOTED, {}), 'no "built" attestation'),
    ],
)
def test_both_signatures_are_needed(tmp_path, artifact, reason):
    with pytest.raises(Untrusted, match=reason):
        Setup(tmp_path, artifact).load()
    assert not folder_of(tmp_path, artifact.artifact_id).exists()


def test_a_kernel_for_another_interface_is_refused_also_when_it_is_ready(setup):
    other = Interface(Kind.MAP2D, 16)
    for _ in range(2):
        with pytest.raises(
            ShapeMismatch, match=r"was compiled for map2d\[8\] float32, and map2d\[16\] float32 is wanted"
        ):
            setup.load(other)
        setup.load()


@pytest.mark.parametrize(
    ("files", "error", "reason"),
    [
        ({MODULE: source("torch.relu(near)", "torch.gelu(near)")}, KernelFault, "differs from its graph by"),
        ({MODULE: source("return project", "assert x.size(0) < 0, 'no'\n    return project")}, KernelFault, "raised"),
        ({MODULE: source("return project", "return project.double() * float('nan')")}, KernelFault, "by nan"),
        ({MODULE: source("return project", "return project.flatten(1)")}, KernelFault, "by inf"),
        ({MODULE: b"junk"}, Corrupt, "are no TorchScript"),
        ({GRAPH: b"junk"}, Corrupt, "is no blueprint graph"),
        ({GRAPH: b"{}"}, Corrupt, "cannot be lowered for map2d"),
        ({WEIGHTS: b"junk"}, Corrupt, "is no safetensors file"),
        ({MODULE: save_script("def forward(x: Tensor) -> Tensor:\n    return x\n")}, InvalidRequest, "must take"),
    ],
)
def test_a_kernel_that_is_not_its_graph_is_refused_whoever_signed_it(tmp_path, files, error, reason):
    setup = Setup(tmp_path, changed(**files))
    with pytest.raises(error, match=reason):
        setup.load()
    assert setup.artifact.artifact_id not in setup.cache


def test_a_form_that_fails_backward_is_refused(tmp_path):
    lines = "if x.requires_grad:\n        project = project.detach()\n    return project"
    setup = Setup(tmp_path, changed(**{MODULE: source("return project", lines)}))
    with pytest.raises(KernelFault, match=r"a step on .* raised RuntimeError"):
        setup.load()


def test_nothing_is_drawn_and_no_setting_changes(setup):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    setup.load()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_threads_that_want_the_same_kernel_load_it_once(setup):
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(setup.load())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one.kernel) for one in loaded}) == 1
    assert setup.asked == 1


def test_a_failed_load_may_be_tried_again(setup):
    setup.artifact = built()
    with pytest.raises(Untrusted):
        setup.load()
    setup.artifact = promoted()
    assert setup.load().kernel.artifact_id == NAME


def test_parsing_looks_at_nothing_compiled(monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    kernel = parse(promoted(), ROOTS)
    assert (kernel.artifact_id, kernel.form) == (NAME, None)
    assert kernel.graph == TEMPLATES["conv3"].graph
    with pytest.raises(Untrusted):
        parse(built(), ROOTS)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_profile(kind):
    interface = Interface(kind, 4)
    for profile in default_profiles(interface):
        assert interface.example(*profile).ndim == kind.position_dims + 2


def test_a_profile_of_another_kind_is_refused(setup):
    with pytest.raises(InvalidRequest, match="has 2 position dimensions, got 1"):
        setup.load(profiles=[(2, 5)])
