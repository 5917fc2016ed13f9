"""One structure of arrays: records and device tensors that never disagree."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import IllegalTransition, NotFound
from esper.host.graft import Strategy
from esper.kasmina import table as table_module
from esper.kasmina.lifecycle import IN_HOST, SeedId, State, Transition
from esper.kasmina.schedule import ramp
from esper.kasmina.table import Seed, SeedTable
from esper.ops import advance_state


def table(**slots):
    return SeedTable.make((slots or {"a": 2, "b": 1}).items(), torch.device("cpu"))


def agrees(made):
    rows = made.layout
    return (
        rows.lifecycle_states.tolist() == [int(s.state) for s in made]
        and rows.alpha_blend.tolist() == pytest.approx([s.alpha for s in made])
        and rows.state_steps.tolist() == [s.state_step for s in made]
        and rows.error_counts.tolist() == [s.errors for s in made]
        and rows.ramp_begins.tolist() == [s.inserted_step for s in made]
        and rows.ramp_steps.tolist() == [-1 if s.held else s.ramp_steps for s in made]
        and rows.ages.tolist() == [made.step - s.inserted_step if s.state in IN_HOST else 0 for s in made]
        and rows.step.tolist() == [made.step]
    )


def test_a_new_table_is_dormant_throughout():
    made = table()
    assert [str(seed.id) for seed in made] == ["a/0", "a/1", "b/0"]
    assert {seed.state for seed in made} == {State.DORMANT} and agrees(made)
    assert [s.id.slot for s in made.of_site("a")] == [0, 1]
    layout = made.layout
    dtypes = [t.dtype for t in layout.tensors()]
    assert dtypes == [torch.uint8, torch.float32, torch.int64, torch.int32, *[torch.int64] * 4]
    assert [len(t) for t in layout.tensors()] == [3] * 7 + [1]


def test_a_move_is_written_twice_and_remembered_once():
    made = table()
    seed = made[SeedId("a", 1)]
    seed.artifact_id = "k"
    moved = made.move(seed, State.GERMINATED, 7, "why")
    assert moved == Transition(seed.id, State.DORMANT, State.GERMINATED, 7, "why", "k")
    assert (seed.state, seed.state_step, seed.reason) == (State.GERMINATED, 7, "why") and agrees(made)
    assert made.in_states([State.GERMINATED]) == [seed]
    assert made.drain() == [moved] and made.drain() == []


def test_a_refused_move_changes_nothing():
    made = table()
    seed = made[SeedId("a", 0)]
    before = copy.deepcopy(seed)
    with pytest.raises(IllegalTransition):
        made.move(seed, State.TRAINING, 7, "why")
    assert seed == before and agrees(made) and made.drain() == []


def test_a_copied_record_is_equal_and_its_own():
    seed = table()[SeedId("a", 1)]
    seed.alpha, seed.span, seed.reason = 0.25, (0, 2), "why"
    copied = copy.copy(seed)
    assert copied == seed and type(copied) is type(seed)
    seed.alpha = 1.0
    assert copied.alpha == 0.25


def test_alpha_and_errors_reach_the_device_and_views_follow():
    made = table()
    seed = made[SeedId("b", 0)]
    view, rows = made.alpha_view(seed), made.layout[2:3]
    made.set_alpha(seed, 0.5)
    assert [made.charge(seed), made.charge(seed)] == [1, 2]
    assert float(view) == 0.5 and view.ndim == 0 and rows.alpha_blend.tolist() == [0.5]
    assert rows.error_counts.tolist() == [2] and agrees(made)
    made.forgive(seed)
    assert seed.errors == 0 and agrees(made)


def test_an_unknown_seed_is_refused_with_the_sites_there_are():
    with pytest.raises(NotFound, match=r"no seed c/0; seeds are <site>/<slot> with a site of \['a', 'b'\]"):
        table()[SeedId("c", 0)]
    with pytest.raises(NotFound):
        table()[SeedId("a", 2)]


def test_clearing_forgets_what_it_carried_and_keeps_its_history():
    seed = Seed(SeedId("a", 0), 0, artifact_id="k", alpha=1.0, span=(0, 1), strategy=Strategy.GATED, folded=True)
    seed.frozen = seed.held = True
    seed.errors, seed.embargo_until_step, seed.reason = 2, 99, "why"
    seed.clear()
    assert seed == Seed(SeedId("a", 0), 0, errors=2, embargo_until_step=99, reason="why")


def test_restoring_replaces_records_by_id_and_is_no_transition():
    made = table()
    saved = Seed(SeedId("b", 0), -1, state=State.EVALUATING, state_step=40, alpha=1.0, errors=3, artifact_id="k")
    made.restore([saved])
    seed = made[SeedId("b", 0)]
    assert (seed.index, seed.state, seed.artifact_id) == (2, State.EVALUATING, "k")
    assert agrees(made) and made.drain() == []
    assert made[SeedId("a", 0)].state is State.DORMANT


def test_restoring_a_seed_that_does_not_exist_changes_nothing():
    made = table()
    saved = [Seed(SeedId("a", 0), 0, state=State.EVALUATING), Seed(SeedId("x", 0), 0)]
    with pytest.raises(NotFound):
        made.restore(saved)
    assert made[SeedId("a", 0)].state is State.DORMANT and agrees(made)


def test_the_table_moves_between_devices_as_a_whole():
    made = table()
    made.to(torch.device("meta"))
    assert {t.device.type for t in made.layout.tensors()} == {"meta"}


# Ramps


def grafting(made, *slots, step=100, ramp_steps=4):
    """Seeds of site "a" that were inserted at `step`."""
    for slot in slots:
        seed = made[SeedId("a", slot)]
        for state in (State.GERMINATED, State.LOADING, State.TRAINING):
            made.move(seed, state, step - 1, "led")
        made.begin_ramp(seed, step, ramp_steps)
        made.move(seed, State.GRAFTING, step, "led")
    return [made[SeedId("a", slot)] for slot in slots]


@pytest.fixture
def launches(monkeypatch):
    """How often the op was called."""
    calls = []

    def counted(*columns, **masks):
        calls.append(columns[0].shape)
        advance_state(*columns, **masks)

    monkeypatch.setattr(table_module, "advance_state", counted)
    return calls


def test_a_step_of_any_number_of_ramps_is_one_launch(launches):
    made = table(a=50, b=1)
    seeds = grafting(made, *range(50), ramp_steps=7)
    for step in range(101, 105):
        assert made.advance(step) == seeds and agrees(made)
        assert made.layout.alpha_blend[:50].tolist() == [torch.tensor(ramp(step, 100, 7)).item()] * 50
    assert launches == [(51,)] * 4


def test_nothing_is_launched_while_no_seed_ramps(launches):
    made = table()
    assert made.advance(1) == []
    (seed,) = grafting(made, 0)
    made.hold(seed, 0.3)
    assert made.advance(101) == [seed] and agrees(made)
    made.move(seed, State.STABILIZATION, 102, "why")
    assert made.advance(103) == [] and agrees(made)
    assert launches == []


def test_a_ramp_rests_while_another_goes_on():
    made = table()
    rests, goes = grafting(made, 0, 1)
    made.hold(rests, 0.3)
    made.advance(101)
    assert (rests.alpha, goes.alpha) == (0.3, 0.25) and agrees(made)
    assert made.layout.ages.tolist() == [1, 1, 0]


@given(st.lists(st.integers(90, 130), max_size=6), st.integers(0, 9))
def test_steps_may_be_left_out_or_gone_back_over(steps, ramp_steps):
    made = table()
    grafting(made, 0, 1, ramp_steps=ramp_steps)
    made.move(made[SeedId("a", 1)], State.STABILIZATION, 100, "why")
    for step in steps:
        (seed,) = made.advance(step)
        assert seed.alpha == ramp(step, 100, ramp_steps) and agrees(made)
        assert made.layout.alpha_blend[0].item() == torch.tensor(seed.alpha).item()


def test_a_seed_that_leaves_the_host_has_no_age_and_its_ramp_is_forgotten_with_it():
    made = table()
    seed, other = grafting(made, 0, 1)
    made.advance(101)
    made.move(seed, State.CULLED, 101, "why")
    made.set_alpha(seed, 0.0)
    assert made.layout.ages.tolist() == [0, 1, 0] and agrees(made)
    made.advance(102)
    assert (seed.alpha, other.alpha) == (0.0, 0.5) and agrees(made)
    made.move(seed, State.DORMANT, 103, "why")
    made.clear(seed)
    assert (seed.inserted_step, seed.ramp_steps) == (0, 0) and agrees(made)


def test_a_restored_table_goes_on_as_it_would_have():
    made, later = table(), table()
    grafting(made, 0)
    for step in (101, 102):
        made.advance(step)
    later.restore([copy.copy(seed) for seed in made])
    assert agrees(later)
    for one in (made, later):
        one.advance(103)
    assert later.layout.alpha_blend.tolist() == made.layout.alpha_blend.tolist() == [0.75, 0.0, 0.0]
    assert later.layout.ages.tolist() == made.layout.ages.tolist() == [3, 0, 0] and agrees(later)


def test_a_ramp_that_cannot_be_is_mended():
    made = table()
    (seed,) = grafting(made, 0)
    seed.inserted_step, seed.ramp_steps = -5, -5
    made.mend(seed, State.GRAFTING, 120)
    assert (seed.inserted_step, seed.ramp_steps, seed.alpha) == (120, 0, 0.0) and agrees(made)


def test_a_slice_shares_the_tables_step():
    made = table()
    rows = made.layout[2:3]
    grafting(made, 0)
    made.advance(101)
    assert rows.step.tolist() == [101] and rows.ages.tolist() == [0]
