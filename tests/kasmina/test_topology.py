"""Changes of topology: the optimiser through all of them, and a host made again from its specs."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from esper.errors import NotFound
from esper.host.graft import Strategy
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import IN_HOST, SeedId, State
from tests import builders
from tests.host.optimizers import OPTIMIZERS, same_state, state_of
from tests.kasmina.audit import Picture, sound
from tests.kasmina.prepared import prepared

each_optimizer = pytest.mark.parametrize("optimizer_name", OPTIMIZERS)


def host_parameters(executor):
    return [p for name, p in executor.model.named_parameters() if "esper_" not in name]


# Surgery, through the moves


@pytest.mark.parametrize("foreach", [False, True])
@each_optimizer
def test_every_change_of_topology_leaves_old_moments_bit_for_bit(optimizer_name, foreach):
    executor, optimizer, seed = prepared(State.TRAINING, optimizer_name, foreach)
    old = host_parameters(executor)

    def unchanged(move):
        before = state_of(optimizer, old)
        move()
        assert same_state(state_of(optimizer, old), before)
        assert sound(executor, optimizer)
        builders.train(executor.model, optimizer, [builders.rows(seed=90)])  # and the optimiser goes on

    unchanged(lambda: executor.insert(seed, optimizer, 10, 0, "test"))
    executor.step_ramps(11)
    executor.advance(seed, State.EVALUATING, 12, "test")
    executor.advance(seed, State.FINE_TUNING, 13, "test")
    unchanged(lambda: executor.fossilise(seed, optimizer, 14, "test"))
    assert not executor.table[seed].folded
    unchanged(lambda: executor.cull(seed, optimizer, 15, "test"))
    unchanged(lambda: executor.undo_removal(seed, optimizer))
    unchanged(lambda: executor.cull(seed, optimizer, 16, "test"))
    executor.end_embargoes(1000)
    builders.lead(executor, State.FINE_TUNING, optimizer, title="low_rank", artifact_id="b" * 64, step=1000)
    unchanged(lambda: executor.fossilise(seed, optimizer, 1010, "test"))
    assert executor.table[seed].folded


@each_optimizer
def test_a_newborn_moves_as_in_a_fresh_optimiser(optimizer_name):
    executor, optimizer, seed = prepared(State.TRAINING, optimizer_name)
    graft = executor.insert(seed, optimizer, 10, 0, "test")
    executor.step_ramps(11)
    executor.model.train()
    twins = [p.detach().clone().requires_grad_() for p in graft.parameters()]
    fresh = OPTIMIZERS[optimizer_name](twins)
    for i in range(3):
        optimizer.zero_grad(set_to_none=True)
        executor.model(builders.rows(seed=i)).square().mean().backward()
        for twin, newborn in zip(twins, graft.parameters(), strict=True):
            twin.grad = newborn.grad.clone()
        optimizer.step()
        fresh.step()
    assert all(torch.equal(p, twin) for p, twin in zip(graft.parameters(), twins, strict=True))
    assert same_state(state_of(optimizer, graft.parameters()), state_of(fresh, twins))
    assert graft.body.project_weight.any()


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("title", ["bottleneck_mlp", "low_rank", "normalisation", "wide_mlp"])
def test_newborns_of_every_strategy_learn(strategy, title):
    """A gate at 0 before a branch that is zero at birth would never get a gradient."""
    executor, optimizer, seed = prepared(State.TRAINING, title=title, strategy=strategy)
    graft = executor.insert(seed, optimizer, 10, 0, "test")
    executor.step_ramps(11)
    born = [p.detach().clone() for p in graft.parameters()]
    builders.train(executor.model, optimizer, [builders.rows(seed=i) for i in range(4)])
    assert all(not torch.equal(p, old) for p, old in zip(graft.parameters(), born, strict=True))


def test_a_newborn_joins_the_group_of_its_site():
    model = builders.seeded(builders.perceptron)
    executor = builders.executor(model)
    optimizer = torch.optim.SGD(
        [{"params": [*model[0].parameters(), *model[4].parameters()]}, {"params": model[2].parameters(), "lr": 0.7}],
        lr=0.1,
    )
    builders.lead(executor, State.GRAFTING, optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 6]


def test_nothing_is_left_of_a_culled_seed():
    executor, optimizer, seed = prepared(State.EVALUATING)
    builders.train(executor.model, optimizer, [builders.rows()])
    gone = [weakref.ref(executor.grafts[seed]), *map(weakref.ref, executor.grafts[seed].parameters())]
    parameters = sum(p.numel() for p in executor.model.parameters())
    executor.cull(seed, optimizer, 20, "test")
    executor.model.zero_grad(set_to_none=True)
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)
    assert sum(p.numel() for p in executor.model.parameters()) < parameters
    assert sound(executor, optimizer)


# The model as data


@pytest.mark.parametrize("state", sorted(IN_HOST), ids=lambda s: s.name)
def test_a_host_made_again_elsewhere_computes_the_same(state):
    executor, _, seed = prepared(state)
    there = builders.executor()
    there.kernels = executor.kernels
    there.regrow(executor.specs(), [copy.copy(s) for s in executor.table], builders.adam(there.model))
    there.model.load_state_dict(executor.model.state_dict())
    assert torch.equal(there.model(builders.rows()), executor.model(builders.rows()))
    assert there.specs() == executor.specs()
    executor.table.set_alpha(executor.table[seed], 0.125)
    assert float(there.grafts[seed].alpha) != 0.125  # a table of its own


def test_regrowing_takes_out_what_the_checkpoint_did_not_have():
    executor, optimizer, seed = prepared(State.STABILIZATION)
    records = [copy.copy(s) for s in builders.executor().table]
    executor.regrow([], records, optimizer)
    assert executor.table[seed].state is State.DORMANT and sound(executor, optimizer)


def test_a_regrown_graft_runs_its_compiled_form_again():
    executor, optimizer, seed = prepared()
    plain = builders.kernel()
    form = lambda h, *_: torch.zeros_like(h)  # noqa: E731
    executor.germinate([builders.assignment(seed)], "e", 1, "test")
    executor.loaded(seed, Kernel(plain.artifact_id, plain.blueprint_id, plain.graph, plain.interface, form), 1)
    executor.insert(seed, optimizer, 1, 4, "test")
    executor.regrow(executor.specs(), [copy.copy(s) for s in executor.table], optimizer)
    assert executor.grafts[seed].form is form
    executor.table.charge(executor.table[seed])  # it has failed, and went without the form since
    executor.regrow(executor.specs(), [copy.copy(s) for s in executor.table], optimizer)
    assert executor.grafts[seed].form is None


def test_a_checkpoint_of_other_sites_is_refused_whole():
    executor, optimizer, _ = prepared(State.STABILIZATION)
    other = builders.executor(targets="4")
    before = Picture.of(executor, optimizer)
    with pytest.raises(NotFound, match="no seed 4/0"):
        executor.regrow([], [copy.copy(s) for s in other.table], optimizer)
    assert Picture.of(executor, optimizer).same_as(before)


def test_the_table_follows_the_model_to_another_device():
    executor, _, seed = prepared(State.GRAFTING)
    executor.model.to("meta")
    executor.follow_device()
    assert executor.table.layout.alpha_blend.device.type == "meta"
    assert executor.grafts[seed].alpha._base is executor.table.layout.alpha_blend
    executor.follow_device()  # there already


def test_abandoning_leaves_fossils_and_nothing_else():
    executor, optimizer, fossil = prepared(State.FOSSILIZED)
    executor.max_live = 2
    live = builders.lead(executor, State.GRAFTING, optimizer, seed=SeedId("2", 1), artifact_id="b" * 64)
    executor.abandon(optimizer, 50, "over")
    assert executor.table[live].state is State.CULLED
    assert executor.table[fossil].state is State.FOSSILIZED
    assert sound(executor, optimizer)


def test_a_model_without_parameters_is_on_the_cpu():
    from esper.kasmina.regrow import device_of

    assert device_of(nn.ReLU()) == torch.device("cpu")
