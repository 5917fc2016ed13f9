"""A dormant seed changes nothing, exactly: before anything has grown, and after it is gone."""

import copy
import random

import pytest
import torch
from torch import nn

from esper.kasmina.lifecycle import State
from esper.kasmina.telemetry import Sampler
from esper.kasmina.wrap import unwrap, wrap
from tests import builders


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(x))


def with_dropout():
    return nn.Sequential(builders.conv_net(norm=True)[:4], nn.Dropout(0.3), nn.Flatten(), nn.Linear(36, 3))


MODELS = {
    "perceptron": (builders.perceptron, builders.rows, nn.Linear),
    "convolutions": (lambda: builders.conv_net(norm=True), builders.images, [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]),
    "dropout": (with_dropout, builders.images, ["0", "3"]),
    "reader": (lambda: builders.Reader(dropout=0.2), builders.ids, ["embed", "norm", "attention", "fc?", "head"]),
    "encoder": (
        Encoder,
        lambda: torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)),
        "encoder.layers.[01]",
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def outputs_and_gradients(model, x):
    """What a user could see of a model: outputs in every mode, gradients, buffers."""
    found = []
    for mode in ("train", "eval", "no_grad"):
        torch.manual_seed(9)
        model.train(mode == "train")
        model.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(mode != "no_grad"):
            out = model(x)
        found.append(out.detach().clone())
        if mode != "no_grad":
            out.square().sum().backward()
            found += [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found + [buffer.clone() for buffer in model.buffers()]


def assert_same(first, second):
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def is_plain(model):
    """No forward on any instance, no hook, no attribute of ours on any module but the handle on the model."""
    return all(
        "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not [key for key in vars(module) if "esper" in key and key != "_esper_handle"]
        and not [key for key in module._modules if key.startswith("esper")]
        for module in model.modules()
    )


@every_model
def test_wrapping_changes_nothing_that_can_be_seen(name):
    make, example, targets = MODELS[name]
    model, x = builders.seeded(make), example()
    plain = copy.deepcopy(model)
    keys, parameters = list(model.state_dict()), [(n, id(p)) for n, p in model.named_parameters()]
    wrap(model, targets, 4, example=x)
    assert list(model.state_dict()) == keys
    assert [(n, id(p)) for n, p in model.named_parameters()] == parameters
    assert is_plain(model)
    assert_same(outputs_and_gradients(model, x), outputs_and_gradients(plain, x))


@every_model
def test_after_a_cycle_of_growing_and_culling_nothing_is_left(name):
    make, example, targets = MODELS[name]
    model, x = builders.seeded(make), example()
    plain = copy.deepcopy(model)
    handle = builders.handle(model, targets, x)
    handle.executor.max_live = 100
    keys, groups = list(model.state_dict()), [len(g["params"]) for g in handle.optimizer.param_groups]
    seeds = [seed.id for seed in handle.executor.table]
    for seed in seeds:
        builders.lead(handle.executor, State.EVALUATING, handle.optimizer, seed=seed, artifact_id=str(seed))
    assert not torch.allclose(model.eval()(x), plain.eval()(x), atol=1e-3)
    for seed in seeds:
        handle.executor.cull(seed, handle.optimizer, 50, "the test is over")
    assert list(model.state_dict()) == keys
    assert [len(g["params"]) for g in handle.optimizer.param_groups] == groups
    assert is_plain(model)
    assert_same(outputs_and_gradients(model, x), outputs_and_gradients(plain, x))


@every_model
def test_while_seeds_are_loaded_and_tried_the_model_is_plain(name):
    make, example, targets = MODELS[name]
    model, x = builders.seeded(make), example()
    plain = copy.deepcopy(model)
    handle = builders.handle(model, targets, x)
    for state in (State.LOADING, State.TRAINING):
        builders.lead(
            handle.executor, state, handle.optimizer, seed=builders.first_seed(handle.executor, state == State.TRAINING)
        )
        assert is_plain(model)
        assert_same(outputs_and_gradients(model, x), outputs_and_gradients(plain, x))


@every_model
def test_between_sampled_steps_the_model_is_plain_and_sampling_changes_no_number(name):
    make, example, targets = MODELS[name]
    model, x = builders.seeded(make), example()
    plain = copy.deepcopy(model)
    sampler = Sampler(wrap(model, targets, 1, example=x).executor.sites)
    sampler.arm()
    assert_same(outputs_and_gradients(model, x), outputs_and_gradients(plain, x))
    assert sampler.disarm()
    assert is_plain(model)


@every_model
def test_wrapping_draws_no_random_number_and_keeps_modes_and_buffers(name):
    make, example, targets = MODELS[name]
    model, x = builders.seeded(make), example()
    model.eval()
    next(iter(model.children())).train()
    modes, buffers = [m.training for m in model.modules()], [b.clone() for b in model.buffers()]
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    wrap(model, targets, example=x)
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    assert [m.training for m in model.modules()] == modes
    assert_same(list(model.buffers()), buffers)
    assert all(p.grad is None for p in model.parameters())


@every_model
def test_unwrapping_a_dormant_model_gives_the_same_plain_object(name):
    make, example, targets = MODELS[name]
    model = builders.seeded(make)
    before = [dict(vars(m)) for m in model.modules()]
    handle = wrap(model, targets, example=example())
    assert unwrap(handle) is model
    assert all(vars(m).keys() == old.keys() for m, old in zip(model.modules(), before, strict=True))
