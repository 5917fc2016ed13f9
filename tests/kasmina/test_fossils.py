"""Fossils: folded or kept, frozen, removed and put back."""

import copy

import pytest
import torch

from esper.errors import IllegalTransition, InvalidRequest, PreconditionFailed
from esper.kasmina.lifecycle import SeedId, State
from tests import builders
from tests.kasmina.audit import Picture, sound
from tests.kasmina.prepared import prepared

# Fossils


def test_a_foldable_fossil_is_plain_weights_with_the_same_function():
    executor, optimizer, seed = prepared(State.FINE_TUNING, title="low_rank")
    x, keys = builders.rows(), builders.perceptron().state_dict().keys()
    before = executor.model.double()(x.double())
    executor.fossilise(seed, optimizer, 30, "kept")
    torch.testing.assert_close(executor.model(x.double()), before, rtol=1e-13, atol=1e-13)
    assert executor.model.state_dict().keys() == keys
    assert executor.table[seed].folded and executor.table[seed].reason == "kept; folded into the host"
    assert "forward" not in vars(executor.model[2])


def test_a_kept_fossil_is_a_branch_that_learns():
    executor, optimizer, seed = prepared(State.FINE_TUNING)
    x = builders.rows()
    before = executor.model(x)
    executor.fossilise(seed, optimizer, 30, "kept")
    assert torch.equal(executor.model(x), before)
    assert executor.table[seed].reason == "kept; kept as a branch: the branch is not affine: it uses gelu"
    weights = executor.grafts[seed].body.project_weight.detach().clone()
    builders.train(executor.model, optimizer, [x])
    assert not torch.equal(executor.grafts[seed].body.project_weight, weights)


@pytest.mark.parametrize("title", ["bottleneck_mlp", "low_rank"])
@pytest.mark.parametrize("to_none", [True, False])
def test_a_frozen_fossil_never_moves_again(title, to_none):
    executor, _, _ = prepared()
    optimizer = torch.optim.AdamW(executor.model.parameters(), lr=0.1, weight_decay=0.5)
    seed = builders.lead(executor, State.FINE_TUNING, optimizer, title=title)
    builders.train(executor.model, optimizer, [builders.rows()])
    executor.fossilise(seed, optimizer, 30, "kept", freeze=True)
    frozen = builders.state_of(executor.grafts[seed])
    for i in range(3):
        optimizer.zero_grad(set_to_none=to_none)
        executor.model(builders.rows(seed=i)).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in executor.grafts[seed].state_dict().items())
    assert executor.table[seed].reason.endswith("kept as a branch: it is frozen")
    executor.regrow(executor.specs(), [copy.copy(s) for s in executor.table], optimizer)
    assert not any(p.requires_grad for p in executor.grafts[seed].parameters())
    assert sound(executor, optimizer)


def test_a_frozen_fossil_regrown_from_its_trial_is_frozen_again():
    executor, optimizer, seed = prepared(State.FINE_TUNING, title="low_rank")
    trial = executor.specs()
    executor.fossilise(seed, optimizer, 30, "kept", freeze=True)
    executor.regrow(trial, [], optimizer)
    executor.settle_fossils(optimizer)
    assert not executor.table[seed].folded
    assert not any(p.requires_grad for p in executor.grafts[seed].parameters())
    assert sound(executor, optimizer)


def test_a_learnable_seed_is_no_fossil_straight_from_its_first_verdict():
    executor, optimizer, seed = prepared(State.EVALUATING)
    with pytest.raises(IllegalTransition, match="has weights to tune; it must be FINE_TUNING"):
        executor.fossilise(seed, optimizer, 30, "test")
    executor, optimizer, seed = prepared(State.EVALUATING, title="fixed")
    executor.fossilise(seed, optimizer, 30, "a fixed function")
    assert executor.table[seed].state is State.FOSSILIZED


def test_a_seed_whose_alpha_is_not_1_is_no_fossil():
    executor, optimizer, seed = prepared(State.FINE_TUNING)
    executor.hold_alpha(seed, 0.5)
    before = Picture.of(executor, optimizer)
    with pytest.raises(PreconditionFailed, match=r"alpha of seed 2/0 is 0\.5 and a fossil's is 1"):
        executor.fossilise(seed, optimizer, 30, "test")
    assert Picture.of(executor, optimizer).same_as(before)


def test_a_folded_fossil_cannot_be_culled_but_can_be_reverted():
    executor, optimizer, seed = prepared(State.FOSSILIZED, title="low_rank")
    with pytest.raises(PreconditionFailed, match="was folded into 2's own weights and cannot be taken out again"):
        executor.cull(seed, optimizer, 30, "test")
    executor.revert(seed, optimizer, 30, "the state before it is restored by the caller")
    assert executor.table[seed].state is State.CULLED and sound(executor, optimizer)


def test_a_kept_fossil_is_reverted_with_its_branch():
    executor, optimizer, seed = prepared(State.FOSSILIZED)
    executor.revert(seed, optimizer, 30, "late cull")
    assert not executor.removed and sound(executor, optimizer)


@pytest.mark.parametrize(("title", "folds"), [("low_rank", True), ("bottleneck_mlp", False)])
def test_a_fossil_regrown_from_its_trial_is_settled_as_fossilising_would(title, folds):
    executor, optimizer, seed = prepared(State.FINE_TUNING, title=title)
    trial, weights = executor.specs(), builders.state_of(executor.model)
    executor.fossilise(seed, optimizer, 30, "kept")
    executor.regrow(trial, [], optimizer)  # back to the best state, of before the verdict
    executor.model.load_state_dict(weights)
    before = executor.model(builders.rows())
    executor.settle_fossils(optimizer)
    torch.testing.assert_close(executor.model(builders.rows()), before, rtol=1e-5, atol=1e-6)
    assert executor.table[seed].folded == folds and sound(executor, optimizer)


# Removal and its undoing


def three_fossils():
    """One kept fossil in each of three slots, inserted in the order 2, 0, 1."""
    model = builders.seeded(builders.perceptron)
    handle = builders.handle(model, "2", seeds_per_layer=3)
    executor, optimizer = handle.executor, handle.optimizer
    seeds = [SeedId("2", slot) for slot in (2, 0, 1)]
    for step, seed in enumerate(seeds, 1):
        builders.lead(executor, State.FOSSILIZED, optimizer, seed=seed, step=100 * step)
        builders.stir(executor.grafts[seed], seed=step)
    return executor, optimizer, seeds


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_removed_fossil_comes_back_in_its_place_with_its_weights(place):
    executor, optimizer, seeds = three_fossils()
    x = builders.rows()
    before, specs = executor.model(x), executor.specs()
    executor.cull(seeds[place], optimizer, 500, "probe")
    assert not torch.allclose(executor.model(x), before)
    executor.end_embargoes(10_000)
    executor.undo_removal(seeds[place], optimizer)
    assert torch.equal(executor.model(x), before)
    assert executor.specs() == specs and sound(executor, optimizer)
    builders.train(executor.model, optimizer, [x])


def test_a_removed_fossil_comes_back_in_the_models_dtype_of_then():
    executor, optimizer, seed = prepared(State.FOSSILIZED)
    executor.cull(seed, optimizer, 30, "probe")
    executor.model.double()
    optimizer.state.clear()
    executor.undo_removal(seed, optimizer)
    assert all(p.grad is None for p in executor.grafts[seed].parameters())  # of a step before its removal
    builders.train(executor.model, optimizer, [builders.rows().double()])
    assert {p.dtype for p in executor.model.parameters()} == {torch.float64}


def test_seeds_inserted_at_one_step_run_as_a_regrown_host_runs_them():
    executor, optimizer, _ = prepared()
    executor.max_live = 2
    for slot in (1, 0):
        seed = builders.lead(executor, State.TRAINING, optimizer, seed=SeedId("2", slot))
        executor.insert(seed, optimizer, 10, 0, "test")
        builders.stir(executor.grafts[seed], seed=slot)
    executor.step_ramps(11)
    x, weights = builders.rows(), builders.state_of(executor.model)
    before = executor.model(x)
    executor.regrow(executor.specs(), [copy.copy(s) for s in executor.table], optimizer)
    executor.model.load_state_dict(weights)
    assert torch.equal(executor.model(x), before)


def test_what_was_never_removed_does_not_come_back():
    executor, optimizer, seed = prepared(State.CULLED)
    with pytest.raises(PreconditionFailed, match="no fossil was removed at 2/0, or its slot has been used since"):
        executor.undo_removal(seed, optimizer)


def test_a_slot_that_was_used_since_does_not_give_its_old_fossil_back():
    executor, optimizer, seed = prepared(State.FOSSILIZED)
    executor.cull(seed, optimizer, 30, "test")
    executor.end_embargoes(10_000)
    executor.germinate([builders.assignment(seed)], "e", 10_000, "test")
    executor.cancel(seed, 10_001, "test")
    with pytest.raises(PreconditionFailed, match="has been used since"):
        executor.undo_removal(seed, optimizer)


def test_an_undo_that_is_refused_can_be_asked_for_again():
    executor, optimizer, seed = prepared(State.FOSSILIZED)
    executor.cull(seed, optimizer, 30, "test")
    with pytest.raises(InvalidRequest):
        executor.undo_removal(seed, builders.adam(builders.perceptron()))
    executor.lock(seed, 31, "test")
    with pytest.raises(PreconditionFailed, match="slot 2/0 is ROLLED_BACK; cull what is there"):
        executor.undo_removal(seed, optimizer)
    executor.release(seed, 32, "test")
    executor.undo_removal(seed, optimizer)
    assert executor.table[seed].state is State.FOSSILIZED
