"""What blend_ refuses, and that each refusal names the argument: in Python, and again in the library."""

import pytest
import torch

from esper.errors import InvalidRequest, ShapeMismatch
from esper.ops import blend_

from .in_place_cases import ACTIVE, states

HOST, SEED, ONE, GATE = torch.zeros(2, 8), torch.zeros(2, 8), torch.ones(1), states(True)


def call(host=HOST, seeds=(SEED,), alphas=ONE, gate=GATE, active=ACTIVE, spans=None, convex=False, dim=1):
    return blend_(host, list(seeds), alphas, gate, active, spans, channel_dim=dim, convex=convex)


def with_grad(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, requires_grad=True)


def no_grad_view() -> torch.Tensor:
    base = with_grad(2, 8) * 1
    with torch.no_grad():
        return base.view(4, 4)


REFUSED = {
    "states shape": (lambda: call(gate=states(True, True)), ShapeMismatch, r"states is \[2\]; it must be \[1\]"),
    "states dtype": (lambda: call(gate=GATE.long()), InvalidRequest, "states has dtype torch.int64; .* torch.uint8"),
    "states device": (lambda: call(gate=GATE.to("meta")), InvalidRequest, "states is on meta, host on cpu"),
    "states gaps": (
        lambda: call(seeds=[SEED, SEED], alphas=torch.ones(2), gate=GATE.repeat(4)[::2]),
        InvalidRequest,
        "states has stride 2",
    ),
    "mask": (lambda: call(active=-1), InvalidRequest, "active is -1; it must be 0 to"),
    "gaps": (
        lambda: call(torch.zeros(2, 16)[:, :8]),
        InvalidRequest,
        r"host \[2, 8\] has strides \[16, 1\], gaps or .*; nothing is copied in place, use .contiguous\(\)",
    ),
    "expanded": (lambda: call(torch.zeros(1, 8).expand(2, 8)), InvalidRequest, r"host \[2, 8\] has strides \[0, 1\]"),
    "itself as seed": (lambda: call(HOST, [HOST]), InvalidRequest, r"host shares memory with seeds\[0\]"),
    "overlap": (
        lambda: (lambda b: call(b[0:2], [b[1:3]]))(torch.zeros(3, 8)),
        InvalidRequest,
        r"host shares memory with seeds\[0\]; use .clone\(\)",
    ),
    "overlap of a seed with gaps": (
        lambda: (lambda b: call(b.view(-1)[:16].view(2, 8), [b[:, :8]]))(torch.zeros(2, 12)),
        InvalidRequest,
        r"host shares memory with seeds\[0\]; use .clone\(\)",
    ),
    "alphas inside": (lambda: call(HOST, alphas=HOST[0, :1]), InvalidRequest, "host shares memory with alphas"),
    "leaf": (lambda: call(with_grad(2, 8)), InvalidRequest, "host is a leaf that requires a gradient"),
    "view of a leaf": (
        lambda: call(with_grad(16).view(2, 8)),
        InvalidRequest,
        "host is a view of a leaf that requires a gradient",
    ),
    "one of several views": (
        lambda: call((with_grad(2, 2, 8) * 1).unbind(0)[0]),
        InvalidRequest,
        "host is a view made by UnbindBackward0, which may not be written in place",
    ),
    "view made without grad": (
        lambda: call(no_grad_view(), [with_grad(4, 4)]),
        InvalidRequest,
        "which may not be written in place",
    ),
    "convex alphas": (
        lambda: call(alphas=with_grad(1), convex=True),
        InvalidRequest,
        "alphas requires a gradient, which in the convex form needs the host that is overwritten",
    ),
}


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("refused", REFUSED)
def test_a_wrong_argument_is_named(using, backend, refused):
    """The library refuses first where it is there; what it refuses is named by the same checks."""
    run, error, message = REFUSED[refused]
    with using(backend), pytest.raises(error, match=message) as caught:
        run()
    assert str(caught.value).startswith("blend_: ")
    assert len(caught.value.fields) == 1
    assert HOST.eq(0).all()


def test_what_blend_refuses_is_refused():
    with pytest.raises(ShapeMismatch, match=r"seeds\[0\] is \[2, 7\]"):
        call(seeds=[SEED[:, :7]])
    with pytest.raises(InvalidRequest, match=r"spans\[1\] is \(4, 8\) and spans\[0\] is \(0, 5\)"):
        call(HOST, [SEED[:, :5], SEED[:, :4]], torch.ones(2), states(True, True), spans=[(0, 5), (4, 8)], convex=True)


RIGHT = {"host": HOST, "seeds": [SEED], "alphas": ONE, "states": GATE, "active": ACTIVE, "spans": [0, 8]}
NATIVE = {
    "grad mode": ({}, "blend_: .* grad mode is on"),
    "states dtype": ({"states": ONE}, "states has dtype Float, must be Byte"),
    "states shape": ({"states": states(True, True)}, r"states is \[2\], must be a contiguous \[1\]"),
    "mask": ({"active": -5}, "active is -5"),
    "seed shape": ({"seeds": [SEED[:, :7]]}, r"seeds\[0\] is \[2, 7\]"),
    "expanded": ({"host": torch.zeros(1, 8).expand(2, 8)}, "host .* has stride 0"),
    "overlap": ({"seeds": [HOST]}, r"host shares memory with seeds\[0\]"),
    "alphas inside": ({"alphas": HOST[0, :1]}, "host shares memory with alphas"),
}


@pytest.mark.parametrize("refused", NATIVE)
def test_the_library_refuses_by_name_and_does_not_crash(using, refused):
    """Anybody may call the library without Esper's checks."""
    changed, message = NATIVE[refused]
    with using("cpp"), torch.set_grad_enabled(refused == "grad mode"), pytest.raises(RuntimeError, match=message):
        torch.ops.esper_native.blend_(**{**RIGHT, **changed}, channel_dim=1, convex=False)
