"""Pipeline aggressive on a CUDA device: tiles are timed, the winner is recorded, and its kernels are the reference."""

import importlib.util
import json

import pytest
import torch

from esper.artifact.regions import SEARCH
from esper.blueprint.interface import Interface, Kind
from esper.karn.templates import TEMPLATES
from esper.ops import extension
from esper.tezzeret.kernels import MACHINE_CODE, triton_version
from tests.requirements import require
from tests.tezzeret.fusable import ADAPTER

pytestmark = pytest.mark.gpu

GRAPH, INTERFACE = TEMPLATES["preactivation_conv"].graph, Interface(Kind.TOKENS, 256)


def require_forge() -> None:
    """What building an artifact here takes; signing is no part of a machine that is lent for its GPU."""
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")
    found = importlib.util.find_spec("cryptography") is not None
    require("cryptography", "" if found else "artifacts are signed with cryptography: pip install cryptography")


@pytest.mark.parametrize("graph", [GRAPH, ADAPTER], ids=["norm", "low_rank"])
def test_tiles_are_timed_and_the_winner_is_the_reference(graph):
    require_forge()
    require("cpp", extension.load().missing)
    from esper.artifact.agree import draw_weights, outcome
    from esper.artifact.bundle import verify
    from esper.artifact.contents import open_contents
    from esper.kasmina.fused import fused_form
    from esper.tezzeret.compile import build, reference
    from esper.tezzeret.timed import device_timer
    from tests.artifact.samples import ROOTS

    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    require("a GPU that is compiled for", "" if target in MACHINE_CODE else f"{target} is none of {list(MACHINE_CODE)}")
    artifact = build(graph, INTERFACE, target, "aggressive", timer=device_timer(target))
    for told in json.loads(artifact.files[SEARCH])["regions"]:
        assert (told["by"], told["not_timed"]) == ("timer", "")
    contents = open_contents(verify(artifact, ROOTS, require=()), artifact.files)
    form, reason = fused_form(contents, artifact.files, torch.device("cuda", torch.cuda.current_device()))
    assert form is not None, reason
    body = reference(graph, INTERFACE).cuda()
    weights = [weight.cuda() for weight in draw_weights(reference(graph, INTERFACE), torch.Generator().manual_seed(3))]
    h = INTERFACE.example(2, 37, generator=torch.Generator().manual_seed(4)).cuda()
    wanted = outcome(lambda x, *p: body.functional(p, x), h, weights)
    for got, want in zip(outcome(form, h, weights), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


def test_another_architectures_kernels_are_not_timed():
    require_forge()
    from esper.tezzeret.compile import build
    from esper.tezzeret.timed import device_timer

    other = "sm_80" if torch.cuda.get_device_capability() != (8, 0) else "sm_90"
    artifact = build(GRAPH, INTERFACE, other, "aggressive", timer=device_timer(other))
    (told,) = json.loads(artifact.files[SEARCH])["regions"]
    assert told["by"] == "model"
    assert told["not_timed"].startswith("the device is ")
