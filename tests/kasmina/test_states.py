"""What people do to their models, done in every state of a seed's life."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import IN_HOST, State
from tests import builders

every_state = pytest.mark.parametrize("state", State, ids=lambda s: s.name)
LIVE_IN_HOST = sorted(IN_HOST)


class Subject:
    """A small network with one seed in a given state."""

    def __init__(self, state, *, make=builders.conv_net, target="0", example=None, title="bottleneck_mlp", kernel=None):
        self.model = builders.seeded(make)
        self.x = builders.images() if example is None else example
        self.executor = builders.executor(self.model, target, self.x)
        # Adam's epsilon is 0 in half precision
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        builders.train(self.model, self.optimizer, [self.x])
        self.model.zero_grad(set_to_none=True)
        self.seed = builders.lead(self.executor, state, self.optimizer, title=title)
        self.state = state
        self.model.eval()

    def out(self, model=None, x=None):
        with torch.no_grad():
            return (model or self.model)(self.x if x is None else x)

    def live_on(self):
        """Take the seed as far as it can go and train it; it must work and be in the optimiser with a gradient."""
        executor, seed = self.executor, self.seed
        if executor.table[seed].state is State.ROLLED_BACK:
            executor.release(seed, 20, "the test goes on")
        executor.end_embargoes(1000)
        record = executor.table[seed]
        if record.state is State.GERMINATED:
            executor.cancel(seed, 20, "no kernel was assigned")
            executor.end_embargoes(1000)
        if record.state is State.DORMANT:
            executor.germinate([builders.assignment(seed)], "event", 20, "the test goes on")
        if record.state is State.LOADING:
            executor.loaded(seed, builders.kernel_for(executor, seed), 20)
        if record.state is State.TRAINING:
            executor.insert(seed, self.optimizer, 20, 0, "the test goes on")
            executor.step_ramps(21)
        graft = executor.grafts[seed]
        builders.train(self.model, self.optimizer, [self.x, self.x])
        assert graft.fault == ""
        assert all(p.grad.any() and p in self.optimizer.state for p in graft.parameters())


# Copies


def _deepcopy(model):
    return copy.deepcopy(model)


def _pickle(model):
    return pickle.loads(pickle.dumps(model))


def _save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _average(model):
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0))
    averaged.update_parameters(model)
    return averaged


@every_state
@pytest.mark.parametrize("how", [_deepcopy, _pickle, _save, _average], ids=lambda f: f.__name__.strip("_"))
def test_a_copy_computes_the_same_and_goes_its_own_way(state, how):
    subject = Subject(state)
    before = subject.out()
    copied = how(subject.model).eval()
    assert torch.equal(subject.out(copied), before)
    builders.stir(subject.model, seed=8)
    assert not torch.equal(subject.out(), before)
    assert torch.equal(subject.out(copied), before)


def test_a_moving_average_follows_a_graft_as_it_follows_the_host():
    subject = Subject(State.STABILIZATION)
    averaged = AveragedModel(subject.model, multi_avg_fn=get_ema_multi_avg_fn(0.5)).eval()
    for _ in range(30):
        averaged.update_parameters(subject.model)
    builders.train(subject.model, subject.optimizer, [subject.x])
    subject.model.eval()
    for _ in range(30):
        averaged.update_parameters(subject.model)
    torch.testing.assert_close(subject.out(averaged), subject.out(), rtol=1e-4, atol=1e-5)


@every_state
def test_a_state_dict_goes_into_a_model_grown_the_same_way(state):
    subject, other = Subject(state), Subject(state)
    builders.stir(other.model, seed=8)
    assert other.model.state_dict().keys() == subject.model.state_dict().keys()
    other.model.load_state_dict(subject.model.state_dict())
    assert torch.equal(other.out(), subject.out())


# Conversions


@every_state
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_model_of_another_dtype_computes_the_same_and_grows_on(state, dtype):
    subject = Subject(state)
    before = subject.out()
    subject.model.to(dtype)
    subject.x = subject.x.to(dtype)
    subject.optimizer.state.clear()  # what the user does with it is theirs: moments of another dtype would not fit
    after = subject.out()
    assert after.dtype is dtype
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(after.float(), before, rtol=tolerance, atol=tolerance)
    subject.live_on()
    assert {p.dtype for p in subject.model.parameters()} == {dtype}
    assert subject.out().dtype is dtype


@every_state
def test_halving_and_back_keeps_alpha_on_the_table(state):
    subject = Subject(state)
    subject.model.half().float()
    seed = subject.executor.table[subject.seed]
    if subject.seed in subject.executor.grafts:
        graft = subject.executor.grafts[subject.seed]
        subject.executor.table.set_alpha(seed, 0.25)
        assert graft.alpha.dtype is torch.float32 and float(graft.alpha) == 0.25


@every_state
def test_a_parameterless_site_grows_in_the_models_dtype_of_then(state):
    subject = Subject(state, target="1")
    subject.model.double()
    subject.x = subject.x.double()
    subject.optimizer.state.clear()
    subject.live_on()
    assert {p.dtype for p in subject.model.parameters()} == {torch.float64}


@every_state
def test_channels_last_memory_computes_the_same_and_grows_on(state):
    subject = Subject(state)
    before = subject.out()
    subject.model.to(memory_format=torch.channels_last)
    subject.x = subject.x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(subject.out(), before, rtol=1e-5, atol=1e-6)
    subject.live_on()


@every_state
def test_moving_to_another_device_takes_the_graft_along(state):
    subject = Subject(state)
    subject.model.to("meta")
    assert subject.model(subject.x.to("meta")).device.type == "meta"
    assert all(graft.alpha.device.type == "meta" for graft in subject.executor.grafts.values())


# Ways to train


@every_state
@pytest.mark.parametrize("title", ["bottleneck_mlp", "normalisation", "squeeze_excitation"])
def test_autocast_trains_and_keeps_the_dormant_models_dtypes(state, title):
    subject = Subject(state, title=title)
    dtypes = []
    subject.model[1].register_forward_hook(lambda _m, args, _o: dtypes.append(args[0].dtype))
    subject.model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = subject.model(subject.x).square().mean()
    loss.backward()
    assert dtypes == [torch.bfloat16]  # what the layer after the site gets
    for name, parameter in subject.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(graft.fault == "" for graft in subject.executor.grafts.values())


@every_state
def test_accumulated_gradients_are_those_of_the_whole_batch(state):
    subject = Subject(state)
    whole = copy.deepcopy(subject.model)
    for chunk in subject.x.chunk(2):
        (subject.model(chunk).square().sum() / 2).backward()
    (whole(subject.x).square().sum() / 2).backward()
    for ours, theirs in zip(subject.model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@every_state
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(state, reentrant):
    subject = Subject(state)
    plain = copy.deepcopy(subject.model)
    x = subject.x.clone().requires_grad_()
    checkpoint(subject.model, x, use_reentrant=reentrant).square().sum().backward()
    plain(subject.x).square().sum().backward()
    for ours, theirs in zip(subject.model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


class Tied(nn.Module):
    """Scores with the transposed weights of its own embedding: the site shares them."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.embed(ids)))


@every_state
@pytest.mark.parametrize("target", ["embed", "head"])
@pytest.mark.parametrize("title", ["bottleneck_mlp", "low_rank"])
def test_tied_weights_stay_tied_and_the_host_half_of_the_function_stays(state, target, title):
    subject = Subject(state, make=Tied, target=target, example=builders.ids(), title=title)
    model = subject.model
    assert model.head.weight is model.embed.weight
    ids = subject.x
    h = F.embedding(ids, model.embed.weight)
    grafts = {seed.site: graft for seed, graft in subject.executor.grafts.items()}
    if "embed" in grafts:
        h = grafts["embed"](h)
    out = torch.tanh(h) @ model.embed.weight.T
    if "head" in grafts:
        out = grafts["head"](out)
    torch.testing.assert_close(subject.out(), out.detach())
    assert not subject.executor.table[subject.seed].folded  # a fold would have changed the other half


@every_state
def test_flipping_modes_reaches_the_graft_and_changes_no_number(state):
    subject = Subject(state)
    before = subject.out()
    for training in (True, False, True, False):
        subject.model.train(training)
        assert all(graft.training is training for graft in subject.executor.grafts.values())
        assert torch.equal(subject.out(), before)


@every_state
def test_clipping_sees_the_graft_exactly_while_it_is_in_the_host(state):
    subject = Subject(state)
    subject.model(subject.x).square().sum().backward()
    norm = nn.utils.clip_grad_norm_(subject.model.parameters(), 1e9)
    grads = [p.grad for group in subject.optimizer.param_groups for p in group["params"]]
    assert torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])) == pytest.approx(float(norm), rel=1e-5)
    assert (len(grads) > 6) == (state in IN_HOST)


@pytest.mark.parametrize("state", LIVE_IN_HOST, ids=lambda s: s.name)
def test_a_compiled_form_is_used_until_the_seed_is_a_fossil_and_never_copied(state):
    calls = []
    subject = Subject(state)
    graft = subject.executor.grafts[subject.seed]

    def form(h, *parameters):
        calls.append(len(parameters))
        return graft.body.functional(parameters, h)

    before = subject.out()
    if not graft.settled:
        graft.use_form(form)
    assert torch.equal(subject.out(), before)
    assert calls == ([] if graft.settled else [4])
    assert torch.equal(subject.out(copy.deepcopy(subject.model)), before)
    assert len(calls) <= 1


def test_a_kernel_with_a_form_is_inserted_with_it():
    calls = []
    subject = Subject(State.DORMANT)
    executor, seed = subject.executor, subject.seed
    plain = builders.kernel_for(executor, seed)
    form = lambda h, *p: (calls.append(1), torch.zeros_like(h))[1]  # noqa: E731
    executor.germinate([builders.assignment(seed)], "event", 1, "test")
    executor.loaded(seed, Kernel(plain.artifact_id, plain.blueprint_id, plain.graph, plain.interface, form), 1)
    executor.insert(seed, subject.optimizer, 1, 1, "test")
    subject.out()
    assert calls == [1]
