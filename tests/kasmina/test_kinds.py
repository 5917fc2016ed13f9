"""For every layer kind: an active seed really runs, in every mode, and computes what a hand-written module would."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from esper.host.graft import Strategy
from esper.kasmina.lifecycle import State
from tests import builders
from tests.kasmina.kinds import KINDS, host

MODES = ["train", "eval", "no_grad"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def branch(body, h, channel_dim):
    """W2 gelu(W1 h + b1) + b2 over the channels, written by hand."""
    x = h.movedim(channel_dim, -1)
    x = F.gelu(x @ body.expand_weight.T + body.expand_bias)
    return (x @ body.project_weight.T + body.project_bias).movedim(-1, channel_dim)


def by_hand(model, site, delta):
    """A copy of the plain model whose site's output has `delta(h)` added, by torch's own hook."""
    plain = copy.deepcopy(model)

    def add(_module, _args, output):
        h = output[0] if isinstance(output, tuple) else output
        return (h + delta(h), *output[1:]) if isinstance(output, tuple) else h + delta(h)

    plain.get_submodule(site).register_forward_hook(add)
    return plain


def call(model, x, mode):
    model.train(mode == "train")
    with torch.set_grad_enabled(mode != "no_grad"):
        return model(x)


def grown(kind, **options):
    """(handle, plain copy, example, site name, channel dim, graft) with a stirred graft at alpha 1."""
    model, example, site, channel_dim = host(kind)
    plain = copy.deepcopy(model)
    handle = builders.handle(model, site, example)
    seed = builders.lead(handle.executor, State.STABILIZATION, handle.optimizer, **options)
    return handle, plain, example, site, channel_dim, handle.executor.grafts[seed]


@every_kind
def test_at_alpha_one_outputs_are_the_hand_written_modules_in_every_mode(kind):
    handle, plain, x, site, channel_dim, graft = grown(kind)
    reference = by_hand(plain, site, lambda h: branch(graft.body, h, channel_dim))
    for mode in MODES:
        out, host_out = call(handle.model, x, mode), call(plain, x, mode)
        assert not torch.allclose(out, host_out, atol=1e-3), mode
        torch.testing.assert_close(out, call(reference, x, mode), rtol=1e-4, atol=1e-5)
    assert graft.fault == ""


@every_kind
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradient_reaches_everything_upstream_and_the_seed_at_every_alpha(kind, alpha):
    handle, plain, x, site, channel_dim, graft = grown(kind)
    handle[site].set_seed_alpha(0, alpha)
    reference = by_hand(plain, site, lambda h: alpha * branch(graft.body, h, channel_dim))
    for model in (handle.model, reference):
        out = call(model, x, "train")
        (out * torch.linspace(0.5, 1.5, out.numel()).view_as(out)).sum().backward()
    expected = dict(reference.named_parameters())
    # what a row of the embedding table that was not looked up gets is nothing, by hand too
    for name, parameter in handle.model.named_parameters():
        if "esper_" in name:
            assert parameter.grad is not None and bool(parameter.grad.any()) == (alpha > 0), name
        else:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()) == bool(expected[name].grad.any()), name
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5)


@every_kind
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_upstream_of_the_slot_nothing_is_cut_off(kind, alpha):
    """The trap of lerp over a detached input: at alpha 1 everything before a finished seed gets zero."""
    handle, _, x, site, _, _ = grown(kind)
    handle[site].set_seed_alpha(0, alpha)
    call(handle.model, x, "train").square().sum().backward()
    names = [name for name, _ in handle.model.named_parameters() if "esper_" not in name]
    upstream = names[: 1 + max((i for i, n in enumerate(names) if n.startswith(site)), default=0)]
    for name in upstream:
        assert handle.model.get_parameter(name).grad.any(), name


@every_kind
def test_a_convex_graft_at_alpha_one_is_the_branch_alone(kind):
    handle, plain, x, site, channel_dim, graft = grown(kind, strategy=Strategy.CONVEX)
    reference = by_hand(plain, site, lambda h: branch(graft.body, h, channel_dim) - h)
    for mode in MODES:
        torch.testing.assert_close(call(handle.model, x, mode), call(reference, x, mode), rtol=1e-4, atol=1e-5)


@every_kind
def test_a_gated_graft_multiplies_the_branch_per_channel(kind):
    handle, plain, x, site, channel_dim, graft = grown(kind, strategy=Strategy.GATED)
    gate = torch.tanh(graft.gamma.detach().flatten())

    def delta(h):
        return (branch(graft.body, h, channel_dim).movedim(channel_dim, -1) * gate).movedim(-1, channel_dim)

    reference = by_hand(plain, site, delta)
    for mode in MODES:
        torch.testing.assert_close(call(handle.model, x, mode), call(reference, x, mode), rtol=1e-4, atol=1e-5)


@every_kind
def test_a_chunk_of_the_channels_is_grown_alone(kind):
    handle, plain, x, site, channel_dim, graft = grown(kind, span=(1, 4))

    def delta(h):
        part = branch(graft.body, h.narrow(channel_dim, 1, 3), channel_dim)
        return (
            torch.zeros_like(h)
            .narrow(channel_dim, 0, h.shape[channel_dim])
            .slice_scatter(part, channel_dim % h.ndim, 1, 4)
        )

    reference = by_hand(plain, site, delta)
    for mode in MODES:
        torch.testing.assert_close(call(handle.model, x, mode), call(reference, x, mode), rtol=1e-4, atol=1e-5)


@every_kind
def test_two_slots_of_a_site_compose_in_the_order_of_their_insertion(kind):
    model, x, site, channel_dim = host(kind)
    plain = copy.deepcopy(model)
    handle = builders.handle(model, site, x)
    handle.executor.max_live = 2
    later, earlier = (builders.first_seed(handle.executor, slot) for slot in (0, 1))
    for seed, step in ((earlier, 10), (later, 20)):
        builders.lead(handle.executor, State.STABILIZATION, handle.optimizer, seed=seed, step=step)
        builders.stir(handle.executor.grafts[seed], seed=step)
    first, second = (handle.executor.grafts[seed].body for seed in (earlier, later))

    def delta(h):
        after = h + branch(first, h, channel_dim)
        return after + branch(second, after, channel_dim) - h

    reference = by_hand(plain, site, delta)
    for mode in MODES:
        torch.testing.assert_close(call(handle.model, x, mode), call(reference, x, mode), rtol=1e-4, atol=1e-5)


@every_kind
def test_a_kernel_that_fails_in_the_middle_of_a_step_leaves_the_hosts_outputs_and_gradients(kind):
    handle, plain, x, _, _, graft = grown(kind)
    graft.use_form(lambda h, *_: torch.full_like(h, math.nan))
    for model in (handle.model, plain):
        call(model, x, "train").square().sum().backward()
    for (name, ours), theirs in zip(
        ((n, p) for n, p in handle.model.named_parameters() if "esper_" not in n), plain.parameters(), strict=True
    ):
        assert torch.equal(ours.grad, theirs.grad), name
    for mode in MODES:
        assert torch.equal(call(handle.model, x, mode), call(plain, x, mode)), mode
    assert graft.fault == "returned a value that is not finite"
