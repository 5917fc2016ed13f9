"""Every optimiser that torch has: a seed grows under it, or is refused by name before anything has changed."""

import inspect

import pytest
import torch
from torch.optim import Optimizer

from esper.errors import InvalidRequest
from esper.host.surgery import add_newborns, sibling
from esper.kasmina.lifecycle import State
from tests import builders
from tests.host.optimizers import same_state, state_of
from tests.kasmina.audit import Picture, sound

OPTIONS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "Adagrad": {"lr": 0.05, "initial_accumulator_value": 0.1},
    "AdamW": {"lr": 0.01, "amsgrad": True},
}
REFUSED = {
    "LBFGS": "keeps one history for all its parameters together",
    "Muon": "takes matrices only",
    "SparseAdam": "takes sparse gradients only",
}
CLASSES = {
    name: made
    for name, made in vars(torch.optim).items()
    if inspect.isclass(made) and issubclass(made, Optimizer) and made is not Optimizer
}


def forms():
    """(class, options) for every implementation that torch has of it on this device."""
    for name, made in CLASSES.items():
        taken = inspect.signature(made).parameters
        for form in ({"foreach": False}, {"foreach": True}, {"fused": True}):
            if name not in REFUSED and set(form) <= set(taken):
                yield pytest.param(made, OPTIONS.get(name, {"lr": 0.01}) | form, id=f"{name}-{form}")


def trained(made, options):
    """(executor, optimizer) after four steps."""
    executor = builders.executor()
    optimizer = made(executor.model.parameters(), **options)
    builders.train(executor.model, optimizer, [builders.rows(seed=i) for i in range(4)])
    return executor, optimizer


@pytest.mark.parametrize(("made", "options"), [*forms()])
def test_a_seed_grows_beside_moments_that_stay_and_gets_its_own_afresh(made, options):
    executor, optimizer = trained(made, options)
    host = list(executor.model.parameters())
    before = state_of(optimizer, host)
    seed = builders.lead(executor, State.STABILIZATION, optimizer)
    assert same_state(state_of(optimizer, host), before)
    newborns = list(executor.grafts[seed].parameters())
    twins = [p.detach().clone().requires_grad_() for p in newborns]
    fresh = made(twins, **options)
    for i in range(3):
        optimizer.zero_grad()
        executor.model(builders.rows(seed=20 + i)).square().mean().backward()
        for twin, newborn in zip(twins, newborns, strict=True):
            twin.grad = newborn.grad.clone()
        optimizer.step()
        fresh.step()
        assert all(torch.equal(a, b) for a, b in zip(newborns, twins, strict=True))
    assert same_state(state_of(optimizer, newborns), state_of(fresh, twins))
    between = state_of(optimizer, host)
    executor.cull(seed, optimizer, 30, "test")
    assert same_state(state_of(optimizer, host), between) and sound(executor, optimizer)
    builders.train(executor.model, optimizer, [builders.rows(seed=30)])


@pytest.mark.parametrize("steps", [0, 3])
def test_newborns_of_an_optimiser_that_has_not_stepped_are_no_older_than_the_others(steps):
    """torch's fused SGD wants momenta for all parameters of a group or for none."""
    model = builders.seeded(builders.perceptron)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.05, momentum=0.9, fused=True)
    for _ in range(steps):
        model(builders.rows()).square().mean().backward()
        optimizer.step()
    newborns = list(model[2].parameters())
    add_newborns(optimizer, newborns, 0)
    model.zero_grad()
    model(builders.rows()).square().mean().backward()
    grads = [p.grad.clone() for p in newborns]
    optimizer.step()
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], g) for p, g in zip(newborns, grads, strict=True))


@pytest.mark.parametrize(("made", "options"), [*forms()])
def test_candidates_outside_the_host_start_as_newborns_do(made, options):
    _, optimizer = trained(made, options)
    outside = [torch.nn.Parameter(torch.ones(3))]
    fresh = made([torch.nn.Parameter(torch.ones(3))], **options)
    beside = sibling(optimizer, outside, 0)
    assert same_state(state_of(beside, outside), state_of(fresh, fresh.param_groups[0]["params"]))


def refusing(name):
    model = builders.seeded(builders.perceptron)
    if name == "Muon":
        return model, torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.01)
    return model, CLASSES[name](model.parameters(), lr=0.01)


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimiser_that_newborns_do_not_fit_is_refused_by_name(name):
    model, optimizer = refusing(name)
    executor = builders.executor(model)
    seed = builders.lead(executor, State.TRAINING, optimizer)
    before = Picture.of(executor, optimizer)
    with pytest.raises(InvalidRequest, match=f"{name} {REFUSED[name]}"):
        executor.insert(seed, optimizer, 10, 4, "test")
    assert Picture.of(executor, optimizer).same_as(before)


def test_a_fused_sgd_with_dampening_is_refused_by_name():
    options = {"lr": 0.05, "momentum": 0.9, "dampening": 0.5, "fused": True}
    executor, optimizer = trained(torch.optim.SGD, options)
    seed = builders.lead(executor, State.TRAINING, optimizer)
    before = Picture.of(executor, optimizer)
    with pytest.raises(InvalidRequest, match=r"fused SGD with dampening.*fused=False"):
        executor.insert(seed, optimizer, 10, 4, "test")
    assert Picture.of(executor, optimizer).same_as(before)


def test_every_optimiser_of_torch_is_here():
    assert set(REFUSED) <= set(CLASSES) and len(CLASSES) >= 15
