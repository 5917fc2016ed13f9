"""Candidates tried side by side: the host never notices, no candidate notices another, and the best go on."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.flop_counter import FlopCounterMode

from esper.host.graft import Graft, Strategy
from esper.kasmina.lifecycle import SeedId
from esper.kasmina.nursery.trial import Curve, TrialOptions, run_trial
from tests import builders
from tests.kasmina.nursery.runs import (
    HOSTS,
    Residual,
    candidate,
    host_state,
    pictures,
    plain,
    regression,
    run_of,
    same_host,
)
from tests.kasmina.nursery.trials import OPTIONS, same_curve, three, tried

every_host = pytest.mark.parametrize("name", HOSTS)


# The host


@every_host
def test_the_host_goes_on_as_if_there_were_no_candidates(name):
    make, site, _ = HOSTS[name]
    torch.manual_seed(3)
    run, _ = tried(make(), three(site))
    with_candidates = host_state(run)
    torch.manual_seed(3)
    alone = run_of(make(), site)
    for _ in range(OPTIONS.steps):
        alone.update(alone.gradients())
    assert same_host(with_candidates, host_state(alone))


class Draws(nn.Module):
    """Dropout, a norm, a buffer that is replaced, and noise even in eval."""

    def __init__(self):
        super().__init__()
        self.inner = Residual(norm=True, dropout=0.4)
        self.site = self.inner.site
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + len(x)
        return self.inner(x) + 0.01 * torch.rand(())


def test_dropout_norms_buffers_and_generators_do_not_notice_either():
    torch.manual_seed(3)
    run, outcome = tried(regression(Draws), three("inner.site"), replace(OPTIONS, halving_step=2, keep_candidates=1))
    with_candidates = host_state(run)
    assert not outcome.batched
    torch.manual_seed(3)
    alone = run_of(regression(Draws), "inner.site")
    for _ in range(OPTIONS.steps):
        alone.update(alone.gradients())
    assert same_host(with_candidates, host_state(alone))
    assert float(run.model.seen) == 16 * OPTIONS.steps  # readings in between left no trace


def test_parameters_take_gradients_again_and_the_host_is_plain():
    run = run_of(regression(plain), "2")
    run.model[0].weight.requires_grad_(False)
    run_trial(run, [candidate(run, "2")], OPTIONS)
    assert [p.requires_grad for p in run.model.parameters()] == [False] + [True] * 5
    assert not any("forward" in vars(m) or k for m in run.model.modules() for k in m._modules if k.startswith("esper"))
    assert run.model.training and run.step == OPTIONS.steps


# The candidates


@every_host
def test_a_candidate_is_the_same_whoever_else_is_tried_and_in_whatever_order(name):
    make, site, _ = HOSTS[name]
    first, second, third = three(site)
    _, together = tried(make(), [first, second, third])
    _, reversed_ = tried(make(), [third, second, first])
    for slot, spec in enumerate((first, second, third)):
        _, alone = tried(make(), [spec])
        assert same_curve(together.curves[slot], alone.curves[0])
        assert same_curve(together.curves[slot], reversed_.curves[2 - slot])
        assert together.curves[slot].seed == SeedId(site, slot)


def test_with_dropout_one_by_one_candidates_are_the_same_bit_for_bit():
    task = regression(lambda: Residual(norm=True, dropout=0.4))
    first, second, third = three("site")
    torch.manual_seed(3)
    _, together = tried(task, [first, second, third])
    torch.manual_seed(3)
    _, alone = tried(task, [third])
    assert same_curve(together.curves[2], alone.curves[0], exactly=True)


def test_candidates_of_several_sites_do_not_notice_each_other():
    task = regression(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 6), nn.Linear(6, 3))
    )
    torch.manual_seed(3)
    _, both = tried(task, [("0", 0, {}), ("3", 0, {}), ("0", 1, {})])
    torch.manual_seed(3)
    _, one = tried(task, [("3", 0, {})])
    assert same_curve(both.curves[1], one.curves[0], exactly=True)
    assert [curve.seed for curve in both.curves] == [SeedId("0", 0), SeedId("3", 0), SeedId("0", 1)]


def test_a_candidate_trains_on_the_task_with_the_hosts_optimiser_and_schedule():
    """One candidate, followed by hand."""
    task = regression(plain, make_scheduler=lambda o: LambdaLR(o, lambda epoch: 0.5**epoch), clip_norm=0.5)
    run, outcome = tried(task, [("2", 0, {"weights_seed": 7})])

    other = run_of(task, "2")
    made = candidate(other, "2", weights_seed=7)
    graft = Graft(made.kernel.body(7, torch.device("cpu")), other.sites["2"].layout, torch.ones(()))
    optimizer = torch.optim.Adam(graft.parameters(), lr=1e-2)

    def with_graft(model, x):
        h = model[2](model[1](model[0](x)))
        return model[4](model[3](h + graft.body(h)))

    for step in range(OPTIONS.steps):
        loss = other.gradients()
        (batch,) = other.batches(step)
        optimizer.zero_grad()
        frozen = [p.requires_grad_(False) for p in other.model.parameters()]
        other.losses(with_graft(other.model, batch[0]), batch).mean().backward()
        for p in frozen:
            p.requires_grad_(True)
        nn.utils.clip_grad_norm_(graft.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = other.optimizer.param_groups[0]["lr"]
        optimizer.step()
        other.update(loss)
    with torch.no_grad():
        losses = [other.losses(with_graft(other.model, b[0]), b) for b in other.held_out(("select",))]
    expected = float(torch.cat(losses).double().mean())
    assert outcome.curves[0].points[-1][1].mean == pytest.approx(expected, rel=1e-5)
    assert outcome.curves[0].points[-1][1].control_mean != pytest.approx(expected, rel=1e-5)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.5**6)


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("span", [None, (1, 4)])
def test_every_strategy_and_a_chunk_are_tried_as_they_will_be_inserted(strategy, span):
    from esper.blueprint.canonical import blueprint_id
    from esper.kasmina.kernel import Kernel

    run = run_of(regression(plain), "2")
    graph = builders.graph()
    at = run.sites["2"].interface if span is None else builders.interface(channels=3)
    made = replace(
        candidate(run, "2", strategy=strategy, span=span), kernel=Kernel("k", blueprint_id(graph), graph, at)
    )
    outcome = run_trial(run, [made], replace(OPTIONS, steps=20))
    assert outcome.curves[0].failure == ""
    gains = [paired.gain for _, paired in outcome.curves[0].points]
    assert len({round(gain, 9) for gain in gains}) > 1  # it learns


def test_accumulated_micro_batches_are_one_step():
    def halves(step):
        x, y = builders.task().batch(step)
        return [(x[:8], y[:8]), (x[8:], y[8:])]

    whole, split = (
        tried(task, three("2"))[1] for task in (regression(plain), regression(plain, batch=halves, accumulate=2))
    )
    for a, b in zip(whole.curves, split.curves, strict=True):
        assert same_curve(a, b)


def test_useful_candidates_gain_more_than_useless_ones():
    _, outcome = tried(
        regression(lambda: nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))),
        [("0", 0, {"title": "wide_mlp"}), ("0", 1, {"title": "scale"})],
        TrialOptions(steps=120, measure_every_steps=30),
    )
    bends, scales = (curve.gain for curve in outcome.curves)
    assert bends > 0.05 and bends > scales


# Readings


def test_readings_are_at_the_period_at_the_end_and_where_the_halving_looks():
    options = TrialOptions(steps=11, measure_every_steps=4, halving_step=5, keep_candidates=1)
    told = []
    _, outcome = tried(regression(plain), three("2"), options, progress=told.append)
    assert told == [4, 5, 8, 11]
    assert sorted(len(curve.points) for curve in outcome.curves) == [2, 2, 4]


def test_readings_are_on_the_slices_asked_for_example_by_example():
    _, outcome = tried(regression(plain), [("2", 0, {})], replace(OPTIONS, slices=("select", "judge")))
    assert {paired.pairs for _, paired in outcome.curves[0].points} == {64}


def test_the_gain_of_a_curve_is_the_mean_of_its_last_two_readings():
    curve = Curve(SeedId("a", 0))
    assert curve.gain == -math.inf
    for gain in (0.9, 0.1, 0.3):
        curve.points.append((1, builders.paired(gain=gain)))
    assert curve.gain == pytest.approx(0.2)
    curve.points.append((1, builders.paired(gain=math.nan)))
    assert curve.gain == -math.inf
    curve.points.pop()
    curve.failure = "raised"
    assert curve.gain == -math.inf


# Halving


def test_halving_keeps_the_best_over_all_sites():
    options = TrialOptions(steps=30, measure_every_steps=5, halving_step=10, keep_candidates=2)
    specs = [
        (site, slot, {"title": title})
        for site in ("0", "2")
        for slot, title in enumerate(("wide_mlp", "scale", "low_rank"))
    ]
    _, outcome = tried(regression(plain), specs, options)
    at_halving = {curve.seed: sum(p.gain for _, p in curve.points[:2]) / 2 for curve in outcome.curves}
    best = sorted(at_halving, key=at_halving.get, reverse=True)[:2]
    assert {curve.seed for curve in outcome.curves if not curve.stopped_early} == set(best)
    for curve in outcome.curves:
        assert len(curve.points) == (2 if curve.stopped_early else 6)


def test_what_goes_on_after_the_halving_goes_on_as_if_alone():
    options = TrialOptions(steps=12, measure_every_steps=4, halving_step=4, keep_candidates=1)
    _, outcome = tried(regression(plain), three("2"), options)
    (kept,) = [slot for slot, curve in enumerate(outcome.curves) if not curve.stopped_early]
    _, alone = tried(regression(plain), [three("2")[kept]], replace(options, halving_step=0, keep_candidates=0))
    assert same_curve(outcome.curves[kept], alone.curves[0])


@pytest.mark.parametrize("changes", [{"halving_step": 3}, {"keep_candidates": 1}])
def test_half_a_halving_is_none(changes):
    _, outcome = tried(regression(plain), three("2"), replace(OPTIONS, **changes))
    assert not any(curve.stopped_early for curve in outcome.curves)


# Ending and cost


def test_a_trial_stops_on_request_between_two_steps():
    steps = []
    _, outcome = tried(regression(plain), three("2"), OPTIONS, stop=lambda: steps.append(1) or len(steps) > 4)
    assert outcome.host_steps == 4
    assert [len(curve.points) for curve in outcome.curves] == [1, 1, 1]


@every_host
def test_the_cost_is_what_torch_counts(name):
    make, site, _ = HOSTS[name]
    run = run_of(make(), site)
    candidates = [candidate(run, s, slot, **changes) for s, slot, changes in three(site)]
    options = replace(OPTIONS, halving_step=3, keep_candidates=2)
    with FlopCounterMode(display=False) as counter:
        outcome = run_trial(run, candidates, options)
    assert outcome.flops == counter.get_total_flops() > 0


def test_whether_several_went_together_is_told():
    assert tried(pictures(), three("3"))[1].batched
    assert not tried(regression(lambda: Residual(norm=True)), three("site"))[1].batched
    assert not tried(regression(plain), three("2")[:1])[1].batched
