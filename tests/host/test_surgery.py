"""Optimiser surgery: old state untouched, newborns as in a fresh optimiser, schedulers that go on."""

import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from esper.errors import InvalidRequest
from esper.host.surgery import add_newborns, follow, home_group, remove_parameters, sibling
from tests import builders
from tests.host.optimizers import OPTIMIZERS, same_state, state_of

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_form = pytest.mark.parametrize("foreach", [False, True])


class Grown(nn.Module):
    """A host and something that is born later; both are trained by one loss."""

    def __init__(self):
        super().__init__()
        self.host = builders.seeded(lambda: nn.Linear(5, 3))
        self.born = builders.seeded(lambda: nn.Linear(5, 3), 1)

    def loss(self, x, *, alive=True):
        return ((self.host(x) + (self.born(x) if alive else 0)) ** 2).mean()


def step(optimizer, loss):
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def trained(name, foreach, steps=5):
    grown = Grown()
    optimizer = OPTIMIZERS[name](grown.host.parameters(), foreach=foreach)
    for i in range(steps):
        step(optimizer, grown.loss(builders.rows(seed=i), alive=False))
    return grown, optimizer


@each_form
@each_optimizer
def test_birth_and_death_leave_every_old_state_bit_for_bit(name, foreach):
    grown, optimizer = trained(name, foreach)
    old = list(grown.host.parameters())
    before = state_of(optimizer, old)
    add_newborns(optimizer, grown.born.parameters(), 0)
    assert same_state(state_of(optimizer, old), before)
    step(optimizer, grown.loss(builders.rows(seed=50)))
    between = state_of(optimizer, old)
    remove_parameters(optimizer, grown.born.parameters())
    assert same_state(state_of(optimizer, old), between)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in old]
    assert set(optimizer.state) <= set(old)


@each_form
@each_optimizer
def test_a_newborn_is_updated_as_by_a_fresh_optimiser(name, foreach):
    grown, optimizer = trained(name, foreach)
    add_newborns(optimizer, grown.born.parameters(), 0)
    twins = [p.detach().clone().requires_grad_() for p in grown.born.parameters()]
    fresh = OPTIMIZERS[name](twins, foreach=foreach)
    for i in range(4):
        optimizer.zero_grad(set_to_none=True)
        grown.loss(builders.rows(seed=60 + i)).backward()
        for twin, newborn in zip(twins, grown.born.parameters(), strict=True):
            twin.grad = newborn.grad.clone()
        before = [p.detach().clone() for p in grown.born.parameters()]
        optimizer.step()
        fresh.step()
        for newborn, old, twin in zip(grown.born.parameters(), before, twins, strict=True):
            assert not torch.equal(newborn, old)
            assert torch.equal(newborn, twin)
    assert same_state(state_of(optimizer, grown.born.parameters()), state_of(fresh, twins))


@each_optimizer
def test_old_parameters_move_on_as_if_nothing_had_been_born(name):
    (grown, optimizer), (alone, reference) = trained(name, None), trained(name, None)
    add_newborns(optimizer, grown.born.parameters(), 0)
    for i in range(3):
        x = builders.rows(seed=70 + i)
        step(optimizer, grown.loss(x, alive=False) + sum(p.square().sum() for p in grown.born.parameters()))
        step(reference, alone.loss(x, alive=False))
    for ours, theirs in zip(grown.host.parameters(), alone.host.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_parameter_list_stays_the_same_object():
    grown, optimizer = trained("adam", None)
    listed = optimizer.param_groups[0]["params"]  # LBFGS and some wrappers keep hold of it
    add_newborns(optimizer, grown.born.parameters(), 0)
    remove_parameters(optimizer, grown.born.parameters())
    assert optimizer.param_groups[0]["params"] is listed


# Which group


def test_newborns_join_the_group_of_their_site():
    model = builders.perceptron()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.5}],
        lr=0.1,
    )
    assert home_group(optimizer, model, model[0]) == 0
    assert home_group(optimizer, model, model[2]) == 1


def test_of_a_block_in_two_groups_the_one_with_more_of_it_counts():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    block = model[0]
    decayed, plain = [block[0].weight, block[1].weight, block[1].bias], [block[0].bias]
    optimizer = torch.optim.AdamW([{"params": plain}, {"params": decayed}])
    assert home_group(optimizer, model, block) == 1


def test_a_site_without_parameters_joins_the_hosts_largest_group():
    model = builders.perceptron()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": [*model[2].parameters(), model[4].weight]}]
    )
    assert home_group(optimizer, model, model[1]) == 1


def test_an_optimiser_of_another_model_is_refused_with_the_remedy():
    model = builders.perceptron()
    with pytest.raises(InvalidRequest, match=r"holds none of the model's parameters.*model\.parameters\(\)"):
        home_group(torch.optim.SGD(builders.perceptron().parameters()), model, model[0])


# Named parameters


def test_names_of_parameters_stay_beside_them():
    grown = Grown()
    optimizer = torch.optim.Adam(grown.host.named_parameters())
    add_newborns(optimizer, grown.born.parameters(), 0)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias", "esper.0", "esper.1"]
    other = builders.perceptron()
    add_newborns(optimizer, [other[0].weight], 0)
    remove_parameters(optimizer, [*grown.born.parameters()])
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias", "esper.2"]
    add_newborns(optimizer, [other[0].bias], 0, learning_rate=0.5)
    assert optimizer.param_groups[1]["param_names"] == ["esper.0"]
    step(optimizer, grown.loss(builders.rows(), alive=False))
    optimizer.load_state_dict(optimizer.state_dict())


# A learning rate of their own

SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.1),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=True),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=50),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.LambdaLR(o, lambda e: 0.5)], [4]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.5, total_iters=4), lr_scheduler.LambdaLR(o, lambda e: 0.9**e)]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_steps_on_over_the_new_group(name):
    grown = Grown()
    optimizer = torch.optim.SGD(grown.host.parameters(), lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    arguments = (1.0,) if name == "plateau" else ()
    for _ in range(2):
        step(optimizer, grown.loss(builders.rows(), alive=False))
        scheduler.step(*arguments)
    add_newborns(optimizer, grown.born.parameters(), 0, learning_rate=0.02, scheduler=scheduler)
    assert optimizer.param_groups[1]["lr"] == 0.02
    for _ in range(5):
        step(optimizer, grown.loss(builders.rows()))
        scheduler.step(*arguments)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert all(math.isfinite(float(rate)) and rate > 0 for rate in rates)
    assert len(scheduler.get_last_lr()) == 2
    assert scheduler.get_last_lr() == pytest.approx(rates)


def test_a_learning_rate_of_their_own_follows_the_schedule_in_proportion():
    grown = Grown()
    optimizer = torch.optim.SGD(grown.host.parameters(), lr=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    add_newborns(optimizer, grown.born.parameters(), 0, learning_rate=0.02, scheduler=scheduler)
    assert scheduler.base_lrs == [0.1, 0.02] and len(scheduler.lr_lambdas) == 2
    step(optimizer, grown.loss(builders.rows()))
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01])


def test_the_new_group_has_its_neighbours_other_settings():
    grown = Grown()
    optimizer = torch.optim.AdamW(grown.host.parameters(), betas=(0.5, 0.6), weight_decay=0.3)
    add_newborns(optimizer, grown.born.parameters(), 0, learning_rate=0.5)
    group = optimizer.param_groups[1]
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.5, 0.6), 0.3, 0.5)
    remove_parameters(optimizer, grown.born.parameters())
    assert len(optimizer.param_groups) == 2  # the scheduler's lists go on fitting
    step(optimizer, grown.loss(builders.rows(), alive=False))


# Siblings


@each_optimizer
def test_a_sibling_is_of_the_same_kind_with_the_groups_settings_of_now(name):
    grown, optimizer = trained(name, None)
    outside = list(grown.born.parameters())
    fresh = sibling(optimizer, outside, 0)
    assert type(fresh) is type(optimizer) and not fresh.state
    settings = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    assert {k: v for k, v in fresh.param_groups[0].items() if k != "params"} == settings
    optimizer.param_groups[0]["lr"] = 0.123
    follow(fresh, optimizer, 0)
    assert fresh.param_groups[0]["lr"] == 0.123
    assert [id(p) for p in fresh.param_groups[0]["params"]] == [id(p) for p in outside]
