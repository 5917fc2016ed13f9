"""Moves of a seed before it is a fossil, and what a refusal leaves: everything as it was."""

import pytest
import torch

from esper.errors import Conflict, IllegalTransition, InvalidRequest, NotFound, PreconditionFailed
from esper.host.graft import Strategy
from esper.kasmina.lifecycle import SeedId, State
from tests import builders
from tests.kasmina.audit import Picture, sound
from tests.kasmina.prepared import prepared

# Before the host


def test_germinating_is_all_or_none():
    executor, optimizer, busy = prepared(State.TRAINING)
    idle = SeedId("2", 1)
    before = Picture.of(executor, optimizer)
    with pytest.raises(IllegalTransition):
        executor.germinate([builders.assignment(idle), builders.assignment(busy)], "e", 1, "test")
    with pytest.raises(InvalidRequest, match="seed 2/1 is assigned more than once"):
        executor.germinate([builders.assignment(idle), builders.assignment(idle)], "e", 1, "test")
    with pytest.raises(NotFound):
        executor.germinate([builders.assignment(idle), builders.assignment(SeedId("9", 0))], "e", 1, "test")
    assert Picture.of(executor, optimizer).same_as(before)


@pytest.mark.parametrize("span", [(0, 7), (3, 3), (4, 2), (-1, 3)])
def test_a_span_outside_the_channels_is_refused_with_both(span):
    executor = builders.executor()
    with pytest.raises(InvalidRequest, match=f"was given channels {span[0]}:{span[1]}; 2 has channels 0:6"):
        executor.germinate([builders.assignment(SeedId("2", 0), span=span)], "e", 1, "test")


def test_a_kernel_for_another_interface_culls_the_seed_and_says_why():
    executor, _, seed = prepared(State.LOADING)
    executor.loaded(seed, builders.kernel(builders.interface(channels=8)), 5)
    record = executor.table[seed]
    assert record.state is State.CULLED and not executor.kernels
    assert "is for vector[8] float32, 2 offers vector[6] float32" in record.reason
    assert record.embargo_until_step == 5 + executor.embargo_steps


def test_a_kernel_of_a_chunk_is_for_its_own_width():
    executor, _, seed = prepared(State.TRAINING, span=(1, 4))
    assert executor.kernels[builders.ARTIFACT].interface.channels == 3
    assert executor.table[seed].parameter_count == executor.kernels[builders.ARTIFACT].parameter_count


def test_a_gated_seed_counts_its_gates():
    plain, gated = (prepared(State.GRAFTING, strategy=s) for s in (Strategy.RESIDUAL, Strategy.GATED))
    for executor, _, seed in (plain, gated):
        assert executor.table[seed].parameter_count == sum(p.numel() for p in executor.grafts[seed].parameters())
    assert gated[0].table[gated[2]].parameter_count == plain[0].table[plain[2]].parameter_count + 6


def test_a_kernel_nobody_assigned_is_refused():
    executor, optimizer, seed = prepared(State.LOADING)
    before = Picture.of(executor, optimizer)
    with pytest.raises(InvalidRequest, match="was assigned kernel aaaaaaaaaaaa and got bbbbbbbbbbbb"):
        executor.loaded(seed, builders.kernel(artifact_id="b" * 64), 5)
    assert Picture.of(executor, optimizer).same_as(before)


@pytest.mark.parametrize("state", [s for s in State if s is not State.LOADING], ids=lambda s: s.name)
def test_the_end_of_loading_is_for_loading_seeds_alone(state):
    executor, optimizer, seed = prepared(state)
    before = Picture.of(executor, optimizer)
    misfit = builders.kernel(builders.interface(channels=8))
    for request in (lambda: executor.load_failed(seed, "no", 5), lambda: executor.loaded(seed, misfit, 5)):
        with pytest.raises(IllegalTransition):
            request()
        assert Picture.of(executor, optimizer).same_as(before)


# Insertion


def test_insertion_changes_no_output():
    executor, optimizer, seed = prepared(State.TRAINING)
    x = builders.rows()
    before = executor.model(x)
    graft = executor.insert(seed, optimizer, 10, 5, "test")
    assert torch.equal(executor.model(x), before)
    assert graft.body.expand_weight.any() and not graft.body.project_weight.any()


def test_hidden_weights_are_distinct_by_run_seed_kernel_and_event():
    def drawn(*, run_seed=0, slot=0, artifact_id=builders.ARTIFACT):
        executor = builders.executor(run_seed=run_seed)
        seed = builders.first_seed(executor, slot)
        builders.lead(executor, State.GRAFTING, seed=seed, artifact_id=artifact_id, stirred=False)
        return executor.grafts[seed].body.expand_weight

    base = drawn()
    assert torch.equal(base, drawn())
    for other in (drawn(run_seed=1), drawn(slot=1), drawn(artifact_id="b" * 64)):
        assert not torch.equal(base, other)


@pytest.mark.parametrize("state", [State.DORMANT, State.GRAFTING, State.FOSSILIZED, State.CULLED], ids=lambda s: s.name)
def test_a_seed_that_was_not_tried_is_not_inserted(state):
    executor, optimizer, seed = prepared(state)
    before = Picture.of(executor, optimizer)
    with pytest.raises(IllegalTransition):
        executor.insert(seed, optimizer, 10, 5, "test")
    assert Picture.of(executor, optimizer).same_as(before)


def test_a_seed_whose_kernel_is_on_the_way_is_not_inserted_even_if_another_seed_has_it():
    executor, optimizer, seed = prepared(State.LOADING)
    executor.kernels[builders.ARTIFACT] = builders.kernel()
    with pytest.raises(PreconditionFailed, match="is LOADING; it can be inserted once its kernel is verified"):
        executor.insert(seed, optimizer, 10, 5, "test")


def test_a_kernel_that_is_gone_is_named():
    executor, optimizer, seed = prepared(State.TRAINING)
    executor.kernels.clear()
    with pytest.raises(NotFound, match=r"kernel a+ of seed 2/0 is not at hand; fetch it from the library first"):
        executor.insert(seed, optimizer, 10, 5, "test")


def test_one_graft_at_a_time_unless_more_are_allowed():
    executor, optimizer, first = prepared(State.GRAFTING)
    second = builders.lead(executor, State.TRAINING, optimizer, seed=SeedId("2", 1))
    with pytest.raises(Conflict, match=r"seed 2/0 is GRAFTING; at most 1 graft.*wait for its verdict"):
        executor.insert(second, optimizer, 20, 5, "test")
    executor.max_live = 2
    executor.insert(second, optimizer, 20, 5, "test")
    assert sound(executor, optimizer)
    assert executor.table[first].state is State.GRAFTING


def test_an_optimiser_of_another_model_is_refused_and_nothing_has_changed():
    executor, optimizer, seed = prepared(State.TRAINING)
    foreign = builders.adam(builders.perceptron())
    before = Picture.of(executor, optimizer)
    with pytest.raises(InvalidRequest, match="holds none of the model's parameters"):
        executor.insert(seed, foreign, 10, 5, "test")
    assert Picture.of(executor, optimizer).same_as(before)
    assert len(foreign.param_groups[0]["params"]) == 6


# Alpha


def test_a_ramp_moves_alpha_by_steps_and_ends_in_stabilization():
    executor, optimizer, seed = prepared(State.TRAINING)
    graft = executor.insert(seed, optimizer, 100, 4, "test")
    seen = []
    for step in range(101, 106):
        executor.step_ramps(step)
        seen.append((float(graft.alpha), executor.table[seed].state))
    assert [alpha for alpha, _ in seen] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [state for _, state in seen] == [State.GRAFTING] * 3 + [State.STABILIZATION] * 2
    assert executor.table.drain()[-1].step == 104


def test_alpha_set_by_hand_stays_until_it_is_1():
    executor, optimizer, seed = prepared(State.TRAINING)
    executor.insert(seed, optimizer, 100, 0, "test")
    executor.hold_alpha(seed, 0.3)
    executor.step_ramps(101)
    assert (executor.table[seed].alpha, executor.table[seed].state) == (0.3, State.GRAFTING)
    executor.hold_alpha(seed, 1.0)
    executor.step_ramps(102)
    assert executor.table[seed].state is State.STABILIZATION


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_bounds_is_refused(alpha):
    executor, _, seed = prepared(State.GRAFTING)
    with pytest.raises(InvalidRequest, match="alpha must be 0 to 1, got"):
        executor.hold_alpha(seed, alpha)


@pytest.mark.parametrize(
    "state", [State.STABILIZATION, State.DORMANT, State.CULLED, State.FOSSILIZED, State.ROLLED_BACK]
)
def test_only_evaluating_and_fine_tuning_are_mere_words(state):
    executor, optimizer, seed = prepared(State.GRAFTING)
    before = Picture.of(executor, optimizer)
    with pytest.raises((InvalidRequest, IllegalTransition)):
        executor.advance(seed, state, 10, "test")
    assert Picture.of(executor, optimizer).same_as(before)


# Faults and time


def test_a_fault_is_told_once_and_counts_where_it_is_charged():
    executor, _, seed = prepared(State.STABILIZATION)
    executor.grafts[seed].use_form(lambda h, *_: h * float("nan"))
    for _ in range(3):  # micro-batches of one step
        executor.model(builders.rows())
    assert executor.take_faults() == [(seed, "returned a value that is not finite")]
    assert executor.take_faults() == []
    assert executor.table[seed].errors == 0
    assert executor.charge(seed) == executor.table[seed].errors == 1
    assert executor.table.layout.error_counts.tolist() == [1, 0]


@pytest.mark.parametrize("state", [State.CULLED, State.CANCELLED])
def test_an_embargo_ends_at_its_step_and_not_before(state):
    executor, _, seed = prepared(state, step=10)
    executor.end_embargoes(10 + executor.embargo_steps - 1)
    assert executor.table[seed].state is state
    executor.end_embargoes(10 + executor.embargo_steps)
    assert executor.table[seed].state is State.DORMANT


def test_a_locked_seed_waits_for_an_operator_and_starts_afresh():
    executor, optimizer, seed = prepared(State.TRAINING)
    executor.table.charge(executor.table[seed])
    executor.lock(seed, 20, "the loss exploded")
    executor.end_embargoes(10**6)
    assert executor.table[seed].state is State.ROLLED_BACK
    executor.release(seed, 21, "looked at")
    assert (executor.table[seed].errors, executor.table[seed].artifact_id) == (0, "")
    assert sound(executor, optimizer)
    with pytest.raises(PreconditionFailed, match="only a ROLLED_BACK seed can be released"):
        executor.release(seed, 22, "again")
