"""A graft against its formulas, and the guard that lets the host's output pass when a kernel fails."""

import copy
import math
import pickle
import re

import pytest
import torch
from torch import nn

from esper.blueprint.interface import Kind
from esper.host.graft import Graft, Strategy
from esper.host.layout import Layout
from tests import builders

KINDS = {Kind.VECTOR: (), Kind.TOKENS: (5,), Kind.MAP1D: (5,), Kind.MAP2D: (3, 4)}
ALPHAS = [0.0, 0.3, 1.0]


def host_of(graft, batch=2):
    at = graft.body.interface
    example = at.example(batch, *KINDS[at.kind], generator=torch.Generator().manual_seed(2))
    return example.requires_grad_()


def expected(graft, h, branch, alpha):
    """The formulas of the module's docstring, in numpy's broadcasting."""
    if graft.strategy is Strategy.CONVEX:
        return h + alpha * (branch - h)
    if graft.strategy is Strategy.GATED:
        shape = [1, -1] + [1] * (h.ndim - 2) if graft.layout.kind.channels_first else [-1]
        return h + alpha * torch.tanh(graft.gamma.reshape(shape)) * branch
    return h + alpha * branch


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("kind", KINDS)
def test_each_strategy_is_its_formula(kind, strategy, alpha):
    graft = builders.graft(builders.interface(kind), strategy=strategy, alpha=alpha)
    h = host_of(graft)
    torch.testing.assert_close(graft(h), expected(graft, h, graft.body(h), alpha), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(graft.candidate(h), graft(h), rtol=0, atol=0)


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("kind", KINDS)
def test_at_alpha_zero_the_hosts_output_passes_bit_for_bit(kind, strategy):
    graft = builders.graft(builders.interface(kind), strategy=strategy, alpha=0.0)
    h = host_of(graft)
    assert torch.equal(graft(h), h)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("strategy", Strategy)
def test_gradient_reaches_the_host_and_the_seed_at_every_alpha(strategy, alpha):
    graft = builders.graft(strategy=strategy, alpha=alpha)
    h = host_of(graft)
    (graft(h) * torch.linspace(1, 2, h.numel()).view_as(h)).sum().backward()
    assert h.grad.abs().min() > 0
    for name, parameter in graft.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == (alpha > 0), name


def test_gate_starts_closed_and_is_one_number_per_channel():
    for kind, shape in [(Kind.MAP2D, (6, 1, 1)), (Kind.MAP1D, (6, 1)), (Kind.TOKENS, (6,)), (Kind.VECTOR, (6,))]:
        at = builders.interface(kind)
        graft = Graft(builders.body(at), Layout(kind), torch.tensor(1.0), strategy=Strategy.GATED)
        assert graft.gamma.shape == shape
        h = host_of(graft)
        assert torch.equal(graft(h), h)
        graft(h).sum().backward()
        assert graft.gamma.grad.any()


def test_a_gate_needs_no_parameters_beside_it():
    at = builders.interface(Kind.MAP1D, dtype=torch.float64)
    graft = builders.graft(at, title="fixed", strategy=Strategy.GATED)
    assert graft.gamma.dtype is torch.float64 and len(list(graft.parameters())) == 1
    h = host_of(graft)
    torch.testing.assert_close(graft(h), h + torch.tanh(graft.gamma) * torch.tanh(h))


@pytest.mark.parametrize("kind", KINDS)
def test_a_span_changes_its_own_channels_only(kind):
    whole = builders.interface(kind, 6)
    graft = builders.graft(builders.interface(kind, 3), span=(1, 4), alpha=0.7, layout=Layout(kind))
    h = whole.example(2, *KINDS[kind], generator=torch.Generator().manual_seed(3))
    out, dim = graft(h), whole.channel_dim
    inner = h.narrow(dim, 1, 3)
    assert torch.equal(out.narrow(dim, 0, 1), h.narrow(dim, 0, 1))
    assert torch.equal(out.narrow(dim, 4, 2), h.narrow(dim, 4, 2))
    torch.testing.assert_close(out.narrow(dim, 1, 3), inner + 0.7 * graft.body(inner))


def test_a_transposed_layout_hands_the_body_the_batch_first():
    at = builders.interface(Kind.TOKENS)
    graft = builders.graft(at, title="single_head_attention", layout=Layout(Kind.TOKENS, transposed=True))
    h = at.example(2, 5, generator=torch.Generator().manual_seed(3))  # [B, T, C]
    out = graft(h.transpose(0, 1))
    assert out.shape == (5, 2, 6)
    torch.testing.assert_close(out.transpose(0, 1), h + graft.body(h))
    changed = h.clone()
    changed[1] += 1  # the other example
    assert torch.equal(graft(changed.transpose(0, 1))[:, 0], out[:, 0])


def test_settling_keeps_the_function_bit_for_bit_and_ends_the_guard():
    graft = builders.graft(alpha=1.0)
    h = host_of(graft)
    live = graft(h)
    graft.settle()
    assert torch.equal(graft(h), live)
    graft.alpha.fill_(0.0)
    assert torch.equal(graft(h), live)
    nn.init.constant_(graft.body.project_bias, math.nan)
    assert graft(h).isnan().all()


def test_alpha_is_followed_in_place():
    alpha = torch.tensor(0.0)
    graft = Graft(builders.body(), Layout(Kind.VECTOR), alpha)
    h = host_of(graft)
    assert torch.equal(graft(h), h)
    alpha.fill_(0.5)
    torch.testing.assert_close(graft(h), h + 0.5 * graft.body(h))


# The guard


def raises(_h, *_parameters):
    raise ValueError("out of luck")


def half(h, *_parameters):
    return h[..., :3]


def poisoned(value):
    def form(h, *_parameters):
        branch = torch.zeros_like(h)
        branch.view(-1)[-1] = value
        return branch

    return form


FAULTS = {
    "raises": (raises, "raised ValueError: out of luck"),
    "shape": (half, r"returned \[2, 3\] on cpu for \[2, 6\] on cpu"),
    "nan": (poisoned(math.nan), "returned a value that is not finite"),
    "inf": (poisoned(math.inf), "returned a value that is not finite"),
    "minus_inf": (poisoned(-math.inf), "returned a value that is not finite"),
    "both_inf": (lambda h, *_: torch.where(h > 0, math.inf, -math.inf), "returned a value that is not finite"),
    "none": (lambda h, *_: None, "returned NoneType, not a floating-point tensor"),
    "tuple": (lambda h, *_: (h, h), "returned tuple, not a floating-point tensor"),
    "integers": (lambda h, *_: h.long(), "returned torch.int64, not a floating-point tensor"),
    "device": (lambda h, *_: h.to("meta"), r"returned \[2, 6\] on meta for \[2, 6\] on cpu"),
}


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("name", FAULTS)
def test_a_kernel_that_fails_leaves_the_hosts_output_and_gradient_as_they_were(name, strategy):
    form, said = FAULTS[name]
    graft = builders.graft(strategy=strategy, alpha=0.6)
    graft.use_form(form)
    h = host_of(graft)
    out = graft(h)
    assert out is h
    assert re.fullmatch(said, graft.fault)
    out.sum().backward()
    assert torch.equal(h.grad, torch.ones_like(h))
    assert all(p.grad is None for p in graft.parameters())


@pytest.mark.parametrize("span", [None, (2, 5)])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_guard_passes_the_hosts_own_tensor_whatever_the_layout(span, transposed):
    channels = 6 if span is None else 3
    at = builders.interface(Kind.TOKENS, channels)
    graft = builders.graft(at, span=span, layout=Layout(Kind.TOKENS, transposed=transposed))
    graft.use_form(raises)
    h = torch.randn(2, 5, 6)
    assert graft(h) is h


def test_large_values_that_are_finite_are_no_fault():
    graft = builders.graft(alpha=0.0)
    graft.use_form(lambda h, *_: torch.full_like(h, 3e38))  # their sum is not finite
    h = host_of(graft)
    assert torch.equal(graft(h), h)
    assert graft.fault == ""


def test_a_fault_stays_until_somebody_reads_it():
    graft = builders.graft()
    h = host_of(graft)
    graft.use_form(raises)
    graft(h)
    graft.use_form(None)
    graft(h)
    assert graft.fault


def test_a_form_computes_with_the_bodys_own_parameters():
    graft = builders.graft(alpha=1.0)
    h = host_of(graft)
    plain = graft(h)
    graft.use_form(lambda x, *parameters: graft.body.functional(parameters, x))
    assert torch.equal(graft(h), plain)
    graft(h).sum().backward()
    assert all(p.grad is not None for p in graft.parameters())


# Copies and conversions


def test_a_copy_computes_the_same_with_the_body_and_follows_its_own_alpha():
    graft = builders.graft(alpha=0.5)
    graft.use_form(lambda x, *p: graft.body.functional(p, x))
    copied = copy.deepcopy(graft)
    h = host_of(graft)
    assert copied.form is None
    assert torch.equal(copied(h), graft(h))
    graft.alpha.fill_(1.0)
    assert float(copied.alpha) == 0.5


def test_a_pickled_graft_computes_the_same():
    graft = builders.graft(alpha=0.5)
    graft.use_form(lambda x: x)
    back = pickle.loads(pickle.dumps(graft))
    h = host_of(graft)
    graft.use_form(None)
    assert torch.equal(back(h), graft(h))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_alpha_stays_float32_and_the_table_whatever_the_parameters_become(dtype):
    graft = builders.graft(strategy=Strategy.GATED)
    alpha = graft.alpha
    graft.to(dtype)
    assert graft.alpha is alpha and alpha.dtype is torch.float32
    assert {p.dtype for p in graft.parameters()} == {dtype}
    assert graft(host_of(graft).to(dtype)).dtype is dtype


@pytest.mark.parametrize("title", ["bottleneck_mlp", "normalisation"])
@pytest.mark.parametrize("strategy", Strategy)
def test_under_autocast_the_hosts_dtype_stays(strategy, title):
    graft = builders.graft(title=title, strategy=strategy)
    h = host_of(graft).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = graft(h)
    assert out.dtype is torch.bfloat16 and graft.fault == ""
    torch.testing.assert_close(
        out.float(), expected(graft, h.float(), graft.body(h.float()), 1.0), rtol=0.03, atol=0.03
    )


def test_repr_says_where_and_how_much():
    assert repr(builders.graft(span=(1, 4), alpha=0.25)).splitlines()[1].strip() == "residual, channels 1:4, alpha 0.25"
    settled = builders.graft(strategy=Strategy.CONVEX)
    settled.settle()
    assert "convex, all channels, settled" in repr(settled)
