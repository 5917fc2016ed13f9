"""Compiling: the same bytes from the same inputs wherever, and only what is equal to the reference."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.artifact.agree import check_agreement
from esper.artifact.attest import BUILT
from esper.artifact.attest import verify as verify_attestation
from esper.artifact.body import MODULE, WEIGHTS, read_body
from esper.artifact.bundle import verify
from esper.artifact.contents import open_contents
from esper.artifact.keys import create_key, load_key
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter
from esper.blueprint.matching import match
from esper.errors import InvalidBlueprint, InvalidRequest, KernelFault, Unavailable
from esper.karn.templates import TEMPLATES
from esper.tezzeret import compile as compile_module
from esper.tezzeret.check import CostLimits
from esper.tezzeret.compile import build, compile_kernel, reference, request_key, target_of, toolchain
from tests.artifact.samples import FORGE, ROOTS

ROOT = Path(__file__).resolve().parents[2]
INTERFACES = (
    Interface(Kind.MAP2D, 8),
    Interface(Kind.TOKENS, 8),
    Interface(Kind.TOKENS, 8, torch.bfloat16, causal=True),
    Interface(Kind.MAP1D, 3, torch.float64),
    Interface(Kind.VECTOR, 8, torch.float16),
)
FITTING = [(t, i) for t in TEMPLATES for i in INTERFACES if match(TEMPLATES[t].graph, i)[0]]
CONV3, MAP = TEMPLATES["conv3"].graph, INTERFACES[0]


@pytest.mark.parametrize(("title", "interface"), FITTING, ids=str)
def test_every_template_compiles_to_what_its_graph_says(title, interface):
    graph = TEMPLATES[title].graph
    artifact = compile_kernel(graph, interface, "cpu", "fast", FORGE)
    body = verify(artifact, ROOTS, require=(BUILT,))
    cost = infer(graph, interface)
    assert body.blueprint_id == blueprint_id(graph)
    assert (body.interface, body.target, body.pipeline) == (interface, "cpu", "fast")
    assert body.parameter_count == cost.parameter_count
    assert body.forward_flops_per_position == cost.forward_flops_per_position
    assert {p.name: p.shape for p in body.parameters} == dict(cost.parameter_shapes)
    assert dict(body.toolchain) == toolchain()
    contents = open_contents(body, artifact.files)
    assert contents.graph == graph
    assert check_agreement(graph, interface, contents.form) <= 1e-4
    for name, tensor in reference(graph, interface).state_dict().items():
        assert torch.equal(contents.weights[name], tensor)


def test_the_forge_says_what_it_built():
    artifact = compile_kernel(CONV3, MAP, "cpu", "fast", FORGE)
    statement = verify_attestation(artifact.manifest.attestations, BUILT, artifact.artifact_id, ROOTS)
    assert statement == {"pipeline": "fast", "target": "cpu", "toolchain": toolchain()}


def test_names_do_not_enter_the_blueprint_but_do_enter_the_artifact():
    def named(weight: str) -> Graph:
        return Graph(
            (Node("a", "scale", (INPUT,), (weight,)),), (Parameter(weight, (CHANNELS,), Initialiser.ZEROS),), "a"
        )

    first, second = (build(named(name), MAP, "cpu", "fast") for name in ("one", "two"))
    assert read_body(first.manifest.body).blueprint_id == read_body(second.manifest.body).blueprint_id
    assert first.artifact_id != second.artifact_id


SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import torch
from esper.artifact.folder import write_folder
from esper.artifact.keys import load_key
from esper.blueprint.interface import Interface, Kind
from esper.karn.templates import TEMPLATES
from esper.tezzeret.compile import compile_kernel
torch.rand(int(sys.argv[3]))
key, out = load_key(Path(sys.argv[1])), Path(sys.argv[2])
for title, interface in (
    ("single_head_attention", Interface(Kind.TOKENS, 16, torch.bfloat16, causal=True)),
    ("squeeze_excitation", Interface(Kind.MAP2D, 12)),
):
    artifact = compile_kernel(TEMPLATES[title].graph, interface, "cpu", "fast", key)
    write_folder(artifact, out / artifact.artifact_id)
"""


def test_another_process_in_another_folder_makes_the_same_bytes(tmp_path):
    """Two processes with different hash seeds, working directories, thread counts and random states."""
    create_key(tmp_path / "key.pem")
    for seed in (1, 2):
        home = tmp_path / f"home{seed}"
        home.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(seed), "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "key.pem"), str(home / "out"), str(seed)],
            cwd=home,
            env=environment,
            check=True,
            timeout=120,
        )
    first, second = (
        {p.relative_to(home): p.read_bytes() for p in sorted(home.rglob("*")) if p.is_file()}
        for home in (tmp_path / "home1" / "out", tmp_path / "home2" / "out")
    )
    assert len(first) == 10  # two artifacts of five files
    assert first == second  # signatures as well: ed25519 draws nothing
    here = compile_kernel(
        TEMPLATES["squeeze_excitation"].graph, Interface(Kind.MAP2D, 12), "cpu", "fast", load_key(tmp_path / "key.pem")
    )
    assert any(str(path.parent) == here.artifact_id for path in first)


def test_what_has_to_do_with_bytes_is_in_the_toolchain_and_the_request_key(monkeypatch):
    before = build(CONV3, MAP, "cpu", "fast")
    monkeypatch.setattr(compile_module, "RECIPE", "3")
    after = build(CONV3, MAP, "cpu", "fast")
    assert before.files == after.files
    assert before.artifact_id != after.artifact_id


def test_request_keys_are_equal_for_equal_requests_only():
    def key(**changes: object) -> str:
        request = {"blueprint": "a" * 64, "interface": MAP, "target": "cpu", "pipeline": "fast"} | changes
        return request_key(**request)

    keys = [
        key(),
        key(blueprint="b" * 64),
        key(interface=Interface(Kind.MAP2D, 9)),
        key(interface=Interface(Kind.MAP2D, 8, torch.float64)),
        key(target="sm_90"),
        key(pipeline="standard"),
        key(versions={"torch": "2.99"}),
        key(interface=Interface(Kind.TOKENS, 8)),
        key(interface=Interface(Kind.TOKENS, 8, causal=True)),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key(versions=toolchain())


def test_pipelines_that_are_not_built_name_those_that_are():
    for pipeline in ("standard", "aggressive"):
        said = rf"pipeline {pipeline} .* which run on sm_80, sm_90, sm_100, gfx942; for cpu ask for fast"
        with pytest.raises(Unavailable, match=said):
            build(CONV3, MAP, "cpu", pipeline)


def test_a_forge_for_a_gpu_makes_torchscript_for_the_cpu():
    assert (target_of("fast", "sm_90"), target_of("standard", "sm_90")) == ("cpu", "sm_90")


@pytest.mark.parametrize("pipeline", ["standard", "aggressive"])
def test_kernels_without_triton_name_the_remedy(monkeypatch, pipeline):
    monkeypatch.setattr(compile_module, "triton_version", lambda: "")
    said = rf"pipeline {pipeline} needs Triton: pip install 'esper\[triton\]' .* or ask for fast"
    with pytest.raises(Unavailable, match=said):
        build(CONV3, MAP, "sm_90", pipeline)


def test_targets_that_are_not_built_name_the_one_that_is():
    with pytest.raises(Unavailable, match=r"fast makes no kernels for sm_90; ask for cpu"):
        build(CONV3, MAP, "sm_90", "fast")
    with pytest.raises(InvalidRequest, match="pipeline 'quick' for target 'cpu'"):
        build(CONV3, MAP, "cpu", "quick")
    with pytest.raises(InvalidRequest, match="for target 'tpu'"):
        build(CONV3, MAP, "tpu", "fast")


def test_the_static_check_comes_first_and_tells_every_reason():
    with pytest.raises(InvalidBlueprint, match=r"parameters at .*; .* forward operations"):
        build(CONV3, MAP, "cpu", "fast", CostLimits(max_parameters=1, max_forward_flops_per_position=1))
    with pytest.raises(InvalidBlueprint, match="conv needs positions"):
        build(CONV3, Interface(Kind.VECTOR, 8), "cpu", "fast")


@pytest.mark.parametrize(
    ("before", "after", "tensor"),
    [("torch.relu(near)", "torch.gelu(near)", "output"), ("padding=1", "padding=1, dilation=1", None)],
)
def test_a_form_that_is_not_its_graph_never_leaves_the_forge(monkeypatch, before, after, tensor):
    genuine = compile_module.torchscript
    monkeypatch.setattr(compile_module, "torchscript", lambda source: genuine(source).replace(before, after))
    if tensor is None:  # a rewriting that changes nothing passes: it is the comparison that decides
        build(CONV3, MAP, "cpu", "fast")
        return
    with pytest.raises(KernelFault, match=f"differs from the reference in its {tensor}"):
        build(CONV3, MAP, "cpu", "fast")


def test_nothing_is_drawn_from_the_process_generator():
    before = torch.get_rng_state()
    compile_kernel(CONV3, MAP, "cpu", "fast", FORGE)
    assert torch.equal(torch.get_rng_state(), before)


def test_module_and_weights_depend_on_graph_and_interface_alone():
    first, second = (build(CONV3, MAP, "cpu", "fast") for _ in range(2))
    assert hashlib.sha256(first.files[MODULE]).digest() == hashlib.sha256(second.files[MODULE]).digest()
    assert first.files[WEIGHTS] == second.files[WEIGHTS]
    assert json.loads(first.manifest.body)["files"][MODULE]["size_bytes"] == len(first.files[MODULE])
