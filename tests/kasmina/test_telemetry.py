"""Samples of one step: what was really there, for that step only, and nothing where nothing was measured."""

import copy
import gc
import math
import sys
import weakref

import numpy as np
import protovalidate
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from esper.blueprint.interface import Kind
from esper.host.layout import Layout
from esper.kasmina.lifecycle import State
from esper.kasmina.telemetry import Sample, Sampler, reduce
from esper.ops.seed_stats import BINS
from tests import builders

STATISTICS = (
    *("activation_mean", "activation_variance", "dead_ratio", "zero_ratio", "activation_entropy"),
    *("activation_abs_max", "gradient_norm", "gradient_variance", "non_finite"),
)


def sampler_of(model, targets, example):
    return Sampler(builders.sites(model, targets, example))


def sampled(model, targets, x, loss=lambda out: out.square().sum()):
    """The samples of one step, by site."""
    sampler = sampler_of(model, targets, x)
    model.train()
    sampler.arm()
    loss(model(x)).backward()
    return {sample.site: sample for sample in sampler.disarm()}


def reading(sample):
    (signal,) = reduce([sample], 3, {sample.site: 1})
    return {name: getattr(signal, name) for name in STATISTICS if signal.HasField(name)}


def with_activation(values, kind=Kind.VECTOR, gradient=None):
    return Sample("x", Layout(kind), values, values._version, gradient)


def by_numpy(h, gradient, channel_dim):
    h, gradient = h.detach().numpy().astype(np.float64), gradient.numpy().astype(np.float64)
    channels = np.moveaxis(h, channel_dim, -1).reshape(-1, h.shape[channel_dim])
    limit = np.abs(h).max()
    counts, _ = np.histogram(h, bins=BINS, range=(-limit, limit))
    shares = counts[counts > 0] / counts.sum()
    return {
        "activation_mean": h.mean(),
        "activation_variance": h.var(),
        "dead_ratio": (channels == 0).all(0).mean(),
        "zero_ratio": (h == 0).mean(),
        "activation_entropy": -(shares * np.log(shares)).sum(),
        "activation_abs_max": limit,
        "gradient_norm": np.sqrt((gradient**2).sum()),
        "gradient_variance": gradient.var(),
        "non_finite": 0,
    }


class Watched(nn.Module):
    """Keeps what its site gave, gradient included, to compare with."""

    def __init__(self, layer, shape):
        super().__init__()
        self.site, self.shape = layer, shape
        self.kept = None

    def forward(self, x):
        self.kept = self.site(x)
        if self.kept.requires_grad:
            self.kept.retain_grad()
        return torch.sin(self.kept) * 2


def dead_relu(channels):
    """A convolution one of whose channels never speaks."""
    layer = nn.Sequential(nn.Conv2d(1, channels, 3), nn.ReLU())
    with torch.no_grad():
        layer[0].bias[0] = -100
    return layer


LAYERS = {
    "vector": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU()), (8, 5), -1),
    "tokens": (lambda: nn.Linear(5, 6), (3, 7, 5), -1),
    "map1d": (lambda: nn.Conv1d(2, 6, 3), (3, 2, 9), 1),
    "map2d": (lambda: dead_relu(6), (3, 1, 6, 6), 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_are_those_numpy_computes(name):
    make, shape, channel_dim = LAYERS[name]
    model, x = Watched(builders.seeded(make), shape), torch.randn(shape)
    found = reading(sampled(model, "site", x)["site"])
    expected = by_numpy(model.kept, model.kept.grad, channel_dim)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    if name == "map2d":
        assert found["dead_ratio"] == pytest.approx(1 / 6) and found["zero_ratio"] > 1 / 6


def test_the_gradient_is_the_losss_own_and_changes_with_it():
    model, x = builders.seeded(builders.perceptron), builders.rows()
    once, twice, other = (
        reading(sampled(model, "2", x, loss)["2"])
        for loss in (lambda o: o.sum(), lambda o: 2 * o.sum(), lambda o: o[:1].square().sum())
    )
    assert twice["gradient_norm"] == pytest.approx(2 * once["gradient_norm"], rel=1e-5)
    assert twice["gradient_variance"] == pytest.approx(4 * once["gradient_variance"], rel=1e-4)
    assert other["gradient_norm"] != pytest.approx(once["gradient_norm"])
    assert once["activation_mean"] == twice["activation_mean"]
    h = model[1](model[0](x)) @ model[2].weight.T + model[2].bias
    expected = torch.autograd.grad(model[4](model[3](h)).sum(), h)[0]
    assert once["gradient_norm"] == pytest.approx(float(expected.norm()), rel=1e-5)


def test_readings_follow_the_model_as_it_trains():
    model, x = builders.seeded(builders.perceptron), builders.rows()
    first = reading(sampled(model, "2", x)["2"])
    builders.train(model, builders.adam(model), [x] * 3)
    later = reading(sampled(model, "2", x)["2"])
    assert all(first[key] != later[key] for key in ("activation_mean", "activation_variance", "gradient_norm"))


def test_a_sampled_step_is_one_step():
    model, x = builders.seeded(builders.perceptron), builders.rows()
    sampler = sampler_of(model, [nn.Linear], x)
    sampler.arm()
    assert sampler.armed
    model(x).sum().backward()
    assert len(sampler.disarm()) == 3 and not sampler.armed
    model(x).sum().backward()
    assert sampler.disarm() == []
    assert not any("forward" in vars(module) for module in model.modules())


def test_only_training_is_sampled():
    model, x = builders.seeded(builders.perceptron), builders.rows()
    sampler = sampler_of(model, "2", x)
    sampler.arm()
    model.eval()(x)
    with torch.no_grad():
        model.train()(x)
    assert sampler.disarm() == []


def test_of_several_micro_batches_the_last_one_counts():
    model = builders.seeded(builders.perceptron)
    first, last = builders.rows(seed=1), builders.rows(seed=2)
    sampler = sampler_of(model, "2", first)
    sampler.arm()
    for x in (first, last):
        model(x).sum().backward()
    (seen,) = sampler.disarm()
    assert torch.equal(seen.activation, model[:3](last)) and seen.gradient is not None


def test_an_active_site_is_sampled_with_its_graft():
    handle = builders.handle()
    builders.lead(handle.executor, State.STABILIZATION, handle.optimizer)
    x = builders.rows()
    sampler = Sampler(handle.executor.sites)
    before = vars(handle.model[2])["forward"]
    sampler.arm()
    handle.model(x).sum().backward()
    (seen,) = sampler.disarm()
    assert torch.equal(seen.activation, handle.model[:3](x))
    assert vars(handle.model[2])["forward"] is before


def test_a_seed_inserted_or_culled_on_a_sampled_step_takes_effect_at_once():
    handle = builders.handle()
    x = builders.rows()
    sampler = Sampler(handle.executor.sites)
    plain = handle.model(x)
    sampler.arm()
    seed = builders.lead(handle.executor, State.STABILIZATION, handle.optimizer)
    assert not torch.allclose(handle.model(x), plain)
    sampler.disarm()
    sampler.arm()
    handle.executor.cull(seed, handle.optimizer, 20, "test")
    assert torch.equal(handle.model(x), plain)
    sampler.disarm()
    assert not any("forward" in vars(module) for module in handle.model.modules())


def test_where_nothing_is_compiled_the_compiler_is_not_loaded_for_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch._dynamo")]:
        monkeypatch.delitem(sys.modules, name)
    model, x = builders.seeded(builders.perceptron), builders.rows()
    assert set(sampled(model, "2", x)) == {"2"}
    assert "torch._dynamo" not in sys.modules


# What was not measured


def test_an_in_place_change_after_the_site_leaves_the_activation_unset_and_the_gradient_right():
    layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    plain = copy.deepcopy(layers)
    plain[1].inplace = False
    x = builders.rows()
    changed, whole = reading(sampled(layers, "0", x)["0"]), reading(sampled(plain, "0", x)["0"])
    assert set(changed) == {"gradient_norm", "gradient_variance", "non_finite"}
    assert changed["gradient_norm"] == pytest.approx(whole["gradient_norm"])
    assert reading(sampled(layers, "1", x)["1"])["zero_ratio"] > 0  # the activation itself is there


def test_a_site_off_the_losss_path_has_no_gradient():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.aside = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return self.used(x), self.aside(x)

    found = reading(sampled(Aside(), "aside", builders.rows(), lambda out: out[0].square().sum())["aside"])
    assert "gradient_norm" not in found and "gradient_variance" not in found
    assert "activation_mean" in found


def test_nothing_measured_is_nothing_set():
    values = torch.zeros(2, 3)
    sample = with_activation(values)
    values.add_(1)
    assert reading(sample) == {}
    assert reading(with_activation(torch.zeros(0, 3), gradient=torch.zeros(0, 3))) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_and_no_statistic_is_made_of_them(bad):
    values = torch.ones(4, 3)
    values[0, 0] = values[1, 1] = bad
    found = reading(with_activation(values, gradient=torch.tensor([bad, 1.0])))
    assert found == {"non_finite": 3, "zero_ratio": 0.0, "dead_ratio": 0.0}


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=12),
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=4),
    st.booleans(),
)
def test_every_reading_keeps_the_contract(values, gradient, in_place):
    activation = torch.tensor(values, dtype=torch.float32).reshape(1, -1)
    sample = with_activation(activation, gradient=torch.tensor(gradient) if gradient else None)
    if in_place:
        activation.mul_(1)
    protovalidate.validate(reduce([sample], 3, {"x": 1})[0])


def test_a_reading_says_whose_and_when():
    (signal,) = reduce([with_activation(torch.ones(2, 3))], 41, {"x": 2})
    assert (signal.site, signal.step, signal.active_seeds) == ("x", 41, 2)


# Entropy


def entropy(values):
    return reading(with_activation(values.reshape(1, -1)))["activation_entropy"]


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60))
def test_entropy_is_between_0_and_ln_32(values):
    tensor = torch.tensor(values)
    if tensor.abs().max() == 0 or tensor.abs().max() > 2.0**-120:  # a range below it is not measured
        assert 0 <= entropy(tensor) <= math.log(BINS) + 1e-6


def test_entropy_of_a_constant_is_0_and_of_equal_bins_the_most():
    assert entropy(torch.full((9,), 3.0)) == 0
    assert entropy(torch.zeros(9)) == 0
    even = torch.linspace(-1, 1, BINS)
    assert entropy(even) == pytest.approx(math.log(BINS))
    assert entropy(torch.tensor([-1.0, 1.0])) == pytest.approx(math.log(2))


# Copies, memory and recomputation


def test_a_copy_made_on_a_sampled_step_does_not_write_into_the_originals_samples():
    model, x = builders.seeded(builders.perceptron), builders.rows()
    sampler = sampler_of(model, "2", x)
    sampler.arm()
    copied = copy.deepcopy(model)
    copied(builders.rows(seed=9)).sum().backward()
    assert sampler._samples == {}
    model(x).sum().backward()
    (seen,) = sampler.disarm()
    copied(builders.rows(seed=9))
    assert torch.equal(seen.activation, model[:3](x))


def test_samples_are_let_go_of_when_they_are_handed_over():
    model, x = builders.seeded(builders.perceptron), builders.rows()
    sampler = sampler_of(model, "2", x)
    sampler.arm()
    model(x).sum().backward()
    gone = [weakref.ref(sample.activation) for sample in sampler.disarm()]
    gc.collect()
    assert [ref() for ref in gone] == [None]


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_loses_neither_activation_nor_gradient(reentrant):
    model, x = builders.seeded(builders.perceptron), builders.rows().requires_grad_()
    plain = reading(sampled(copy.deepcopy(model), "2", x)["2"])
    sampler = sampler_of(model, "2", x)
    sampler.arm()
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    (seen,) = sampler.disarm()
    assert reading(seen) == plain
