"""A form that blends by itself: when a graft lets it, and that a fault of it leaves the host as any other's does."""

import pytest
import torch

from esper.blueprint.interface import Kind
from esper.host.graft import Graft, Strategy, join
from esper.host.layout import Layout
from tests import builders


class Joining:
    """A form with a fused blend, in plain torch, that notes how it was called."""

    def __init__(self, graft: Graft, *, takes=True, fault=None) -> None:
        self.graft, self.takes, self.fault, self.called = graft, takes, fault, []
        self.layouts: list[tuple[int, ...]] = []

    def __call__(self, h, *parameters):
        self.called.append("branch")
        return self.graft.body.functional(parameters, h)

    def joins(self, host, alpha):
        self.layouts.append(tuple(host.shape))
        return self.takes

    def joined(self, host, alpha, *parameters, convex):
        self.called.append("convex" if convex else "residual")
        if self.fault:
            return self.fault(host)
        if host.is_meta:
            return torch.empty_like(host)
        branch = self.graft.body.functional(parameters, host)
        return torch.lerp(host, branch, alpha) if convex else torch.addcmul(host, branch, alpha)


def grafted(at=None, **settings) -> tuple[Graft, Joining]:
    of_form = {key: settings.pop(key) for key in ("takes", "fault") if key in settings}
    graft = builders.graft(at, alpha=0.6, **settings)
    form = Joining(graft, **of_form)
    graft.use_form(form)
    return graft, form


def host_of(graft, *, device="cpu"):
    h = graft.body.interface.example(2, *(5,) * graft.body.interface.kind.position_dims, device=device)
    return h.requires_grad_()


@pytest.mark.parametrize("strategy", [Strategy.RESIDUAL, Strategy.CONVEX])
def test_a_candidate_is_joined_by_its_form_with_the_gradients_of_the_op(strategy):
    graft, form = grafted(strategy=strategy)
    graft.alpha = torch.tensor(0.6, requires_grad=True)
    h = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    seen = []
    for takes in (True, False):
        form.takes = takes
        out = graft.candidate(h)
        seen.append([out, *torch.autograd.grad((out * out).sum(), [h, graft.alpha, *graft.parameters()])])
    assert form.called == [strategy.value, "branch"]
    for joined, apart in zip(*seen, strict=True):
        torch.testing.assert_close(joined, apart, rtol=1e-5, atol=1e-6)


def test_on_a_cpu_the_guard_looks_at_the_branch_and_so_it_is_computed():
    graft, form = grafted()
    h = host_of(graft)
    assert graft(h) is not h
    assert form.called == ["branch"]
    graft.use_form(lambda h, *_: torch.full_like(h, float("nan")))
    assert graft(h) is h
    assert graft.fault == "returned a value that is not finite"


def test_elsewhere_the_guard_looks_at_no_value_and_the_form_joins():
    graft, form = grafted()
    h = host_of(graft, device="meta")
    out = graft(h)
    assert out is not h and out.shape == h.shape
    assert (form.called, graft.fault) == (["residual"], "")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda h: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda h: h[..., :3], r"returned [2, 5, 3] on meta for [2, 5, 6] on meta"),
        (lambda h: None, "returned NoneType, not a floating-point tensor"),
    ],
    ids=["raises", "shape", "none"],
)
def test_a_fault_of_it_leaves_the_hosts_own_tensor(fault, said, transposed):
    at = builders.interface(Kind.TOKENS)
    graft, form = grafted(at, fault=fault, layout=Layout(Kind.TOKENS, transposed=transposed))
    h = torch.empty((5, 2, 6) if transposed else (2, 5, 6), device="meta")
    assert graft(h) is h
    assert (form.called, graft.fault) == (["residual"], said)


def test_a_candidates_fault_ends_its_own_trial():
    graft, _ = grafted(fault=lambda h: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        graft.candidate(host_of(graft))


@pytest.mark.parametrize("case", ["gated", "span", "settled", "refused", "two"])
def test_it_is_not_asked_where_another_way_of_joining_is_needed(case):
    settings = {"gated": {"strategy": Strategy.GATED}, "span": {"span": (1, 7)}, "refused": {"takes": False}}
    graft, form = grafted(**settings.get(case, {}))
    h = torch.randn(2, 8 if case in ("span", "two") else 6)
    others = []
    if case == "settled":
        graft.settle()
        graft.use_form(form)
    if case == "two":
        graft.span = (0, 6)
        others = [builders.graft(builders.interface(channels=2), span=(6, 8))]
    join([graft, *others], h, guarded=False)
    assert form.called == ["branch"]


def test_compiled_code_has_the_body():
    graft, form = grafted()
    h = host_of(graft)
    torch._dynamo.reset()
    out = torch.compile(graft.candidate, backend="eager", fullgraph=True)(h)
    torch._dynamo.reset()
    assert form.called == []
    graft.use_form(None)
    torch.testing.assert_close(out, graft.candidate(h))


def test_a_transposed_host_is_handed_over_batch_first_and_given_back():
    graft, form = grafted(builders.interface(Kind.TOKENS), layout=Layout(Kind.TOKENS, transposed=True))
    h = torch.randn(5, 2, 6)
    out = graft.candidate(h)
    assert (form.layouts, form.called) == ([(2, 5, 6)], ["residual"])
    form.takes = False
    torch.testing.assert_close(out, graft.candidate(h))
