"""`wrap` and `unwrap`: what they accept, what they refuse, and that neither keeps a model alive."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from esper.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed, WrapRefused
from esper.kasmina.lifecycle import SeedId, State
from esper.kasmina.telemetry import Sampler
from esper.kasmina.wrap import handle_of, unwrap, wrap
from tests import builders


class Takes(nn.Module):
    """Takes two tensors, by position or by name."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 6)

    def forward(self, x, scale):
        return self.fc(x) * scale


class Unused(nn.Module):
    """Holds a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 6)
        self.never = nn.Linear(5, 6)

    def forward(self, x):
        return self.fc(x)


ONE = torch.ones(1)


@pytest.mark.parametrize(
    "how",
    [
        {"example": (builders.rows(), ONE)},
        {"example": [builders.rows(), ONE]},
        {"example": {"x": builders.rows(), "scale": ONE}},
        {"run": lambda model: model(builders.rows(), scale=ONE)},
    ],
    ids=["tuple", "list", "dict", "run"],
)
def test_an_example_is_given_as_the_model_takes_it(how):
    model = Takes()
    handle = wrap(model, nn.Linear, **how)
    assert handle.model is model and list(handle.sites) == ["fc"]
    assert handle["fc"].num_seeds == 4


def test_without_an_example_the_first_batch_proves_the_layers():
    model, plain = builders.perceptron(), builders.perceptron()
    plain.load_state_dict(model.state_dict())
    handle = wrap(model, target_layers=[nn.Linear], seeds_per_layer=4, telemetry_enabled=True)
    site = next(iter(handle.sites))
    assert handle[site].num_seeds == 4 and handle.pending is not None
    with pytest.raises(PreconditionFailed, match=r"not proved yet: call the model on one batch first"):
        handle[site].get_layer_stats()
    assert torch.equal(model(builders.rows()), plain(builders.rows()))
    assert handle.pending is None and not model._forward_pre_hooks
    assert handle[site].get_layer_stats()["states"] == ["DORMANT"] * 4


def test_a_first_batch_that_proves_nothing_is_refused_each_time_until_the_model_is_unwrapped():
    model = Unused()
    wrap(model, ["never"])
    for _ in range(2):
        with pytest.raises(WrapRefused, match="never"):
            model(builders.rows())
    unwrap(model)
    assert model(builders.rows()).shape == (len(builders.rows()), 6)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_made_before_the_first_batch_proves_nothing(how):
    model = builders.perceptron()
    handle = wrap(model)
    how(model)(builders.rows())
    assert handle.pending is not None


@pytest.mark.parametrize("count", [0, -1, 1024])
def test_seeds_per_layer_is_bounded(count):
    with pytest.raises(InvalidRequest, match=f"seeds_per_layer must be 1 to 1,023, got {count}"):
        wrap(builders.perceptron(), None, count, example=builders.rows())


def test_a_wrap_that_wraps_nothing_is_refused_and_leaves_the_model_unwrapped():
    model = builders.perceptron()
    with pytest.raises(WrapRefused):
        wrap(model, nn.Conv2d, example=builders.rows())
    with pytest.raises(NotFound):
        handle_of(model)
    assert wrap(model, example=builders.rows())


def test_a_wrapped_model_is_not_wrapped_twice():
    model = builders.perceptron()
    handle = wrap(model, example=builders.rows())
    assert handle_of(model) is handle
    with pytest.raises(Conflict, match=r"is wrapped already; call esper\.unwrap"):
        wrap(model, example=builders.rows())
    unwrap(model)
    assert wrap(model, example=builders.rows()) is not handle


def test_what_is_not_wrapped_cannot_be_unwrapped():
    for ask in (unwrap, handle_of):
        with pytest.raises(NotFound, match="this Sequential is not wrapped"):
            ask(builders.perceptron())
    handle = builders.handle()
    unwrap(handle)
    assert unwrap(handle) is handle.model  # by handle, twice is harmless


def test_a_wrapped_model_goes_when_its_last_user_goes():
    model = builders.perceptron()
    wrap(model, example=builders.rows())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_the_handle_lives_as_long_as_the_model():
    model = builders.perceptron()
    wrap(model, example=builders.rows())
    gc.collect()
    assert handle_of(model).model is model


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_not_wrapped_and_can_be(how):
    model = builders.perceptron()
    handle = wrap(model, example=builders.rows())
    copied = how(model)
    with pytest.raises(NotFound):
        handle_of(copied)
    assert wrap(copied, example=builders.rows()).executor.table is not handle.executor.table
    assert handle_of(model) is handle


def test_a_pickle_of_a_dormant_model_needs_no_esper_to_be_read():
    model = builders.perceptron()
    wrap(model, example=builders.rows())
    assert b"esper." not in pickle.dumps(model)


def test_causal_can_be_stated():
    model = builders.Reader(causal=False)
    handle = wrap(model, "fc1", example=builders.ids(), causal=True)
    assert handle["fc1"].site.interface.causal


# Unwrapping


def test_unwrapping_takes_trials_out_of_model_and_optimiser_and_leaves_fossils():
    handle = builders.handle()
    executor, optimizer, model = handle.executor, handle.optimizer, handle.model
    executor.max_live = 2
    fossil = builders.lead(executor, State.FOSSILIZED, optimizer)
    live = builders.lead(executor, State.GRAFTING, optimizer, seed=SeedId("2", 1), artifact_id="b" * 64)
    keys = [key for key in model.state_dict() if "esper_1" not in key]
    assert unwrap(handle) is model
    assert list(model.state_dict()) == keys
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert executor.table[live].state is State.CULLED and list(executor.grafts) == [fossil]


def test_unwrapping_cancels_what_was_to_be_tried():
    handle = builders.handle()
    seed = builders.lead(handle.executor, State.TRAINING)
    unwrap(handle)
    assert handle.executor.table[seed].state is State.CANCELLED


def test_unwrapping_without_an_optimiser_takes_the_trial_out_of_the_model():
    handle = builders.handle()
    builders.lead(handle.executor, State.GRAFTING, handle.optimizer)
    handle.optimizer = None
    assert not [key for key in unwrap(handle).state_dict() if "esper" in key]


def test_unwrapping_between_arming_and_disarming_leaves_no_sampled_forward():
    handle = builders.handle()
    sampler = Sampler(handle.executor.sites)
    sampler.arm()
    unwrap(handle)
    assert not any("forward" in vars(module) for module in handle.model.modules())
    wrap(handle.model, example=builders.rows())
    sampler.disarm()  # for the tests that follow: armed, it keeps the process from compiling
