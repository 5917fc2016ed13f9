"""What blend refuses: the refusal names the argument, the value and the limit, in Python and in the library."""

import pytest
import torch

from esper.errors import InvalidRequest, ShapeMismatch
from esper.ops import blend

HOST = torch.zeros(2, 8)
SEED = torch.zeros(2, 8)
ALPHA = torch.ones(1)
F16 = torch.float16


def halves(*spans: tuple[int, int], convex: bool = False):
    seeds = [torch.zeros(2, max(0, stop - start)) for start, stop in spans]
    return blend(HOST, seeds, torch.ones(len(spans)), list(spans), channel_dim=1, convex=convex)


REFUSED = {
    "no seeds": (lambda: blend(HOST, [], ALPHA, channel_dim=1), InvalidRequest, "seeds is empty"),
    "seed shape": (
        lambda: blend(HOST, [SEED[:, :7]], ALPHA, channel_dim=1),
        ShapeMismatch,
        r"seeds\[0\] is \[2, 7\]; over channels \(0, 8\) of dimension 1 of host \[2, 8\] it must be \[2, 8\]",
    ),
    "seed batch": (
        lambda: blend(HOST, [torch.zeros(1, 8)], ALPHA, channel_dim=1),
        ShapeMismatch,
        r"seeds\[0\] is \[1, 8\]",
    ),
    "seed dtype": (
        lambda: blend(HOST, [SEED.to(F16)], ALPHA, channel_dim=1),
        InvalidRequest,
        r"seeds\[0\] has dtype torch.float16, host torch.float32; use .to\(torch.float32\), or autocast",
    ),
    "seed device": (
        lambda: blend(HOST, [SEED.to("meta")], ALPHA, channel_dim=1),
        InvalidRequest,
        r"seeds\[0\] is on meta, host on cpu",
    ),
    "host dtype": (
        lambda: blend(HOST.int(), [SEED.int()], ALPHA, channel_dim=1),
        InvalidRequest,
        "host has dtype torch.int32; supported are torch.float32, torch.float64, torch.bfloat16, torch.float16",
    ),
    "host layout": (
        lambda: blend(HOST.to_sparse(), [SEED], ALPHA, channel_dim=1),
        InvalidRequest,
        r"host has layout torch.sparse_coo; .* use .to_dense\(\)",
    ),
    "seed layout": (
        lambda: blend(HOST, [SEED.to_sparse()], ALPHA, channel_dim=1),
        InvalidRequest,
        r"seeds\[0\] has layout torch.sparse_coo",
    ),
    "alphas shape": (
        lambda: blend(HOST, [SEED], torch.ones(8), channel_dim=1),
        ShapeMismatch,
        r"alphas is \[8\]; it must be \[1\], one per seed",
    ),
    "alphas dtype": (
        lambda: blend(HOST.to(F16), [SEED.to(F16)], ALPHA.to(F16), channel_dim=1),
        InvalidRequest,
        "alphas has dtype torch.float16; it must be float32, or float64 with a float64 host",
    ),
    "alphas too exact": (
        lambda: blend(HOST, [SEED], ALPHA.double(), channel_dim=1),
        InvalidRequest,
        "alphas has dtype torch.float64",
    ),
    "alphas device": (
        lambda: blend(HOST, [SEED], ALPHA.to("meta"), channel_dim=1),
        InvalidRequest,
        "alphas is on meta, host on cpu",
    ),
    "a number": (lambda: blend(HOST, [SEED], 0.5, channel_dim=1), InvalidRequest, r"alphas\[0\] is float"),
    "a list of numbers": (lambda: blend(HOST, [SEED], [0.5], channel_dim=1), InvalidRequest, r"alphas\[0\] is float"),
    "channel_dim": (
        lambda: blend(HOST, [SEED], ALPHA, [(0, 8)], channel_dim=2),
        ShapeMismatch,
        r"channel_dim is 2; host \[2, 8\] has dimensions -2 to 1",
    ),
    "number of spans": (
        lambda: blend(HOST, [SEED], ALPHA, [(0, 4), (4, 8)], channel_dim=1),
        ShapeMismatch,
        "spans has 2 entries for 1 seeds",
    ),
    "span outside": (
        lambda: halves((0, 4), (5, 9)),
        ShapeMismatch,
        r"spans\[1\] is \(5, 9\); it must lie in \(0, 8\), the channels",
    ),
    "span reversed": (lambda: halves((4, 2)), ShapeMismatch, r"spans\[0\] is \(4, 2\)"),
    "span negative": (lambda: halves((-1, 2)), ShapeMismatch, r"spans\[0\] is \(-1, 2\)"),
    "convex overlap": (
        lambda: halves((0, 5), (4, 8), convex=True),
        InvalidRequest,
        r"spans\[1\] is \(4, 8\) and spans\[0\] is \(0, 5\); the convex form has one slot per channel",
    ),
    "convex overlap without spans": (
        lambda: blend(HOST, [SEED, SEED], torch.ones(2), channel_dim=1, convex=True),
        InvalidRequest,
        r"spans\[1\] is \(0, 8\)",
    ),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_wrong_argument_is_named(refused):
    call, error, message = REFUSED[refused]
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).startswith("blend: ")
    assert len(caught.value.fields) == 1


@pytest.mark.parametrize("refused", ["seed shape", "seed dtype", "alphas shape", "alphas device"])
def test_a_large_call_is_checked_like_a_small_one(using, refused):
    """The small calls take a way of their own on CPU; forcing a kernel takes the other."""
    call, error, message = REFUSED[refused]
    with using("cpp"), pytest.raises(error, match=message):
        call()


SPAN = [0, 8]
NATIVE = {
    "grad mode": (
        lambda op: op(HOST, [SEED], ALPHA, SPAN, 1, False),
        "blend: .* grad mode is on; call it under no_grad",
    ),
    "seed shape": (
        lambda op: op(HOST, [SEED[:, :7]], ALPHA, SPAN, 1, False),
        r"seeds\[0\] is \[2, 7\], host is \[2, 8\]",
    ),
    "seed dims": (lambda op: op(HOST, [SEED[0]], ALPHA, SPAN, 1, False), r"seeds\[0\] is \[8\], host is \[2, 8\]"),
    "seed dtype": (
        lambda op: op(HOST, [SEED.to(F16)], ALPHA, SPAN, 1, False),
        r"seeds\[0\] has dtype Half, must be Float",
    ),
    "host dtype": (
        lambda op: op(HOST.int(), [SEED.int()], ALPHA, SPAN, 1, False),
        "host has dtype Int; supported: Float",
    ),
    "alphas dtype": (
        lambda op: op(HOST, [SEED], ALPHA.double(), SPAN, 1, False),
        "alphas has dtype Double, must be Float",
    ),
    "alphas shape": (
        lambda op: op(HOST, [SEED], torch.ones(2), SPAN, 1, False),
        r"alphas is \[2\], must be a contiguous \[1\]",
    ),
    "channel_dim": (lambda op: op(HOST, [SEED], ALPHA, SPAN, -1, False), r"channel_dim is -1, not inside \[0, 2\)"),
    "odd spans": (lambda op: op(HOST, [SEED], ALPHA, [0], 1, False), "spans has 1 entries"),
    "no slots": (lambda op: op(HOST, [], torch.ones(0), [], 1, False), "spans has 0 entries"),
    "missing seed": (lambda op: op(HOST, [], ALPHA, SPAN, 1, False), "seeds has 0 entries, spans 2"),
    "span": (
        lambda op: op(HOST, [SEED], ALPHA, [1, 9], 1, False),
        r"slot 0 covers channels \[1, 9\), not inside \[0, 8\)",
    ),
    "overlap": (
        lambda op: op(HOST, [SEED, SEED], torch.ones(2), [0, 8, 0, 8], 1, True),
        "slots 0 and 1 overlap; the convex form has one slot per channel",
    ),
    "host gaps": (
        lambda op: op(torch.zeros(2, 16)[:, :8], [SEED], ALPHA, SPAN, 1, False),
        r"host \[2, 8\] has stride 16 in dimension 0 where a dense tensor of the op's layout has 8",
    ),
    "seed layout": (
        lambda op: op(HOST, [torch.zeros(8, 2).t()], ALPHA, SPAN, 1, False),
        r"seeds\[0\] \[2, 8\] has stride",
    ),
    "no dimensions": (lambda op: op(torch.zeros(()), [torch.zeros(())], ALPHA, SPAN, 0, False), "channel_dim is 0"),
}


@pytest.mark.parametrize("refused", NATIVE)
def test_the_library_refuses_by_name_and_does_not_crash(using, refused):
    """Anybody may call the library without Esper's checks."""
    call, message = NATIVE[refused]
    with using("cpp"), torch.set_grad_enabled(refused == "grad mode"), pytest.raises(RuntimeError, match=message):
        call(torch.ops.esper_native.blend)


def test_the_librarys_backward_refuses_by_name(using):
    op = torch.ops.esper_native.blend_backward
    with using("cpp"), torch.no_grad():
        with pytest.raises(RuntimeError, match="host must be given exactly where it is read"):
            op(HOST, None, [SEED], ALPHA, SPAN, 1, True)
        with pytest.raises(RuntimeError, match=r"host is \[2, 7\], grad is \[2, 8\]"):
            op(HOST, HOST[:, :7], [SEED], ALPHA, SPAN, 1, True)
        with pytest.raises(RuntimeError, match=r"seeds\[0\] is \[2, 7\], grad is \[2, 8\]"):
            op(HOST, None, [SEED[:, :7]], ALPHA, SPAN, 1, False)


def test_the_operator_checks_too():
    with pytest.raises(ShapeMismatch, match=r"seeds\[0\]"):
        torch.ops.esper.blend(HOST, [SEED[:, :7]], ALPHA, SPAN, 1, False)
    with pytest.raises(ShapeMismatch, match=r"spans\[0\] is \(1, 9\)"):
        torch.ops.esper.blend_backward(HOST, None, [], ALPHA, [1, 9], 1, False)
