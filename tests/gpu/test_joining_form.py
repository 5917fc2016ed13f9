"""The kernels that blend, on a CUDA device: a guarded graft is joined by its form as by the form and the op."""

import pytest
import torch

from esper.blueprint.interface import Interface, Kind
from esper.blueprint.lower import lower
from esper.karn.templates import TEMPLATES
from esper.ops import extension
from esper.tezzeret.kernels import MACHINE_CODE
from tests.gpu.test_tile_timing import require_forge
from tests.requirements import require

pytestmark = pytest.mark.gpu

GRAPH = TEMPLATES["highway"].graph


@pytest.mark.parametrize("strategy", ["residual", "convex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_graft_joined_by_its_form_is_the_form_and_then_the_op(strategy, dtype, monkeypatch):
    require_forge()
    require("cpp", extension.load().missing)
    from esper.artifact.agree import draw_weights
    from esper.artifact.bundle import verify
    from esper.artifact.contents import open_contents
    from esper.host.graft import Graft, Strategy
    from esper.host.layout import Layout
    from esper.kasmina.fused import fused_form
    from esper.tezzeret.compile import build
    from tests.artifact.samples import ROOTS

    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    require("a GPU that is compiled for", "" if target in MACHINE_CODE else f"{target} is none of {list(MACHINE_CODE)}")
    interface = Interface(Kind.TOKENS, 256, dtype)
    artifact = build(GRAPH, interface, target, "standard")
    contents = open_contents(verify(artifact, ROOTS, require=()), artifact.files)
    form, reason = fused_form(contents, artifact.files, torch.device("cuda", torch.cuda.current_device()))
    assert form is not None, reason
    launched: list[str] = []
    launch = form._launch

    def noted(name, programs, arguments):
        launched.append(name)
        launch(name, programs, arguments)

    monkeypatch.setattr(form, "_launch", noted)
    body = lower(GRAPH, interface)
    with torch.no_grad():
        for own, value in zip(
            body.ordered_parameters(), draw_weights(body, torch.Generator().manual_seed(3)), strict=True
        ):
            own.copy_(value)
    table = torch.zeros(3, device="cuda", requires_grad=True)
    graft = Graft(body.cuda(), Layout(Kind.TOKENS), table[1], strategy=Strategy(strategy))
    graft.use_form(form)
    host = interface.example(2, 37, generator=torch.Generator().manual_seed(4)).cuda()
    assert torch.equal(graft(host), host)  # alpha is 0
    with torch.no_grad():
        table.fill_(0.3)
    outcomes = []
    for offered in (True, False):
        if not offered:
            monkeypatch.setattr(form, "_last", None)
        h = host.clone().requires_grad_()
        out = graft(h)
        outcomes.append([out, *torch.autograd.grad((out.float() ** 2).sum(), [h, table, *graft.parameters()])])
        assert graft.fault == ""
    assert {name.partition("_")[2] for name in launched[-4:]} == {
        "joined_forward",
        "joined_backward",
        "forward",
        "backward",
    }
    rtol = 1e-3 if dtype is torch.float32 else 5e-2
    for joined, apart in zip(*outcomes, strict=True):
        torch.testing.assert_close(joined, apart, rtol=rtol, atol=rtol * 0.1 * apart.abs().max().item())
