"""Several candidates in one pass give what each gives alone."""

import pytest
import torch
from torch import nn

from esper.host.graft import Strategy
from esper.kasmina.nursery.fan_out import FanOut
from tests import builders
from tests.kasmina.nursery.runs import HOSTS, Residual, kernel_at, reading, regression, run_of

every_host = pytest.mark.parametrize("name", HOSTS)


def fan_out(task, site, count=3, **options):
    run = run_of(task, site)
    grafts = [
        builders.graft(kernel_at(run, site).interface, seed=10 + i, layout=run.sites[site].layout, **options)
        for i in range(count)
    ]
    return run, FanOut(run, run.sites[site], grafts)


def alone(run, fan, batch):
    return [FanOut(run, fan.site, [graft]).losses(batch)[0] for graft in fan.grafts]


@every_host
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mode_that_is_found_agrees_with_one_pass_each(name, mode):
    make, site, wanted = HOSTS[name]
    run, fan = fan_out(make(), site)
    run.model.train(mode == "train")
    for step in range(3):
        (batch,) = run.batches(step)
        got, want = fan.losses(batch), alone(run, fan, batch)
        assert fan.mode == wanted
        assert len(got) == 3 and not torch.allclose(got[0], got[1])
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


@every_host
def test_gradients_of_each_candidate_are_its_own(name):
    make, site, _ = HOSTS[name]
    run, fan = fan_out(make(), site)
    (batch,) = run.batches(0)
    torch.stack([loss.mean() for loss in fan.losses(batch)]).sum().backward()
    together = [[p.grad.clone() for p in graft.parameters()] for graft in fan.grafts]
    for graft, found in zip(fan.grafts, together, strict=True):
        graft.zero_grad(set_to_none=True)
        FanOut(run, fan.site, [graft]).losses(batch)[0].mean().backward()
        for p, other in zip(graft.parameters(), found, strict=True):
            torch.testing.assert_close(p.grad, other, rtol=1e-3, atol=1e-5)


@every_host
def test_newborn_candidates_give_the_hosts_own_losses_in_the_same_mode(name):
    """At birth all candidates are alike, which must not decide the mode."""
    make, site, wanted = HOSTS[name]
    run = run_of(make(), site)
    kernel = kernel_at(run, site)
    from esper.kasmina.regrow import born

    grafts = [born(kernel, i, run.sites[site], run.model, torch.ones(()), Strategy.RESIDUAL, None) for i in range(3)]
    fan = FanOut(run, run.sites[site], grafts)
    (batch,) = run.batches(0)
    run.model.eval()
    host = run.losses(run.outputs(run.model, batch), batch)
    for loss in fan.losses(batch):
        torch.testing.assert_close(loss, host, rtol=1e-4, atol=1e-5)
    assert fan.mode == wanted


@every_host
def test_the_host_is_plain_afterwards(name):
    make, site, _ = HOSTS[name]
    run, fan = fan_out(make(), site)
    generator = torch.get_rng_state()
    fan.prepare(run.batches(0)[0])
    assert not any("forward" in vars(module) for module in run.model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert run.model.training


@pytest.mark.parametrize("options", [{"strategy": Strategy.CONVEX}, {"strategy": Strategy.GATED}])
def test_other_strategies_fan_out_too(options):
    run, fan = fan_out(regression(Residual), "site", **options)
    (batch,) = run.batches(0)
    for g, w in zip(fan.losses(batch), alone(run, fan, batch), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_candidates_join_after_the_grafts_that_are_there():
    run, fan = fan_out(regression(Residual), "site")
    from esper.host.forward import attach

    attach(run.sites["site"], 0, builders.graft(seed=99))
    (batch,) = run.batches(0)
    made = run.model.site.forward
    got = fan.losses(batch)
    assert run.model.site.forward is made
    for g, w in zip(got, alone(run, fan, batch), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        h = torch.tanh(run.model.into(batch[0]))
        after = fan.grafts[0].candidate(run.model.site(h))
        expected = run.losses(run.model.out(h + torch.tanh(after)), batch)
    torch.testing.assert_close(got[0], expected, rtol=1e-4, atol=1e-5)


def test_a_single_candidate_needs_no_mode():
    run, fan = fan_out(regression(Residual), "site", count=1)
    assert fan.mode == "serial"
    assert len(fan.losses(run.batches(0)[0])) == 1


def test_a_host_that_checks_its_shapes_by_assertion_is_run_one_by_one():
    class Strict(Residual):
        def forward(self, x):
            assert len(x) == 16, "always 16 rows"
            h = torch.tanh(self.into(x))
            after = self.site(h)
            assert after.shape == h.shape
            return self.out(h + after)

    run, fan = fan_out(regression(Strict), "site")
    (batch,) = run.batches(0)
    fan.losses(batch)
    assert fan.mode == "serial"


def test_a_host_that_is_random_in_eval_is_run_one_by_one():
    class Noisy(Residual):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    _, fan = fan_out(regression(Noisy), "site")
    assert fan.prepare(fan.run.batches(0)[0]) == "serial"


def test_one_by_one_every_candidate_sees_the_same_dropout():
    run, fan = fan_out(regression(lambda: Residual(norm=True, dropout=0.5)), "site")
    (batch,) = run.batches(0)
    torch.manual_seed(5)
    together = fan.losses(batch)
    for graft, loss in zip(fan.grafts, together, strict=True):
        torch.manual_seed(5)
        assert torch.equal(FanOut(run, fan.site, [graft]).losses(batch)[0], loss)


def test_a_candidate_inside_a_fused_block_is_measured_without_grad():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.out = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 11)
            self.embed = nn.Embedding(11, 8)

        def forward(self, ids):
            mask = torch.zeros(ids.shape[1], ids.shape[1]) if ids.shape[1] == 8 else None
            return self.out(self.block(self.embed(ids), src_mask=mask))

    from dataclasses import replace

    from esper.host.fused import fused_ancestors

    task = replace(reading(), make_model=Blocks)
    run = run_of(task, "block")
    inner = replace(
        run.sites["block"],
        name="block.linear2",
        module=run.model.block.linear2,
        fused_blocks=fused_ancestors(run.model, "block.linear2"),
    )
    graft = builders.graft(inner.interface, layout=inner.layout)
    (batch,) = run.batches(0)
    run.model.eval()
    with torch.no_grad():
        (fused,) = FanOut(run, inner, [graft]).losses(batch)
    (open_,) = FanOut(run, inner, [graft]).losses(batch)
    torch.testing.assert_close(fused, open_.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fused, run.losses(run.outputs(run.model, batch), batch).detach(), atol=1e-3)
    assert run.model.block.activation_relu_or_gelu == 1


def test_looking_for_the_mode_leaves_every_module_in_its_own():
    run, fan = fan_out(regression(lambda: Residual(dropout=0.5)), "site")
    run.model.train()
    run.model.drop.eval()
    before = [module.training for module in run.model.modules()]
    assert fan.prepare(run.batches(0)[0]) == "input"
    assert [module.training for module in run.model.modules()] == before
