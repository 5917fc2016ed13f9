"""One structure of arrays: records and device tensors that never disagree."""

import copy

import pytest
import torch

from esper.errors import IllegalTransition, NotFound
from esper.host.graft import Strategy
from esper.kasmina.lifecycle import SeedId, State, Transition
from esper.kasmina.table import Seed, SeedTable


def table(**slots):
    return SeedTable.make((slots or {"a": 2, "b": 1}).items(), torch.device("cpu"))


def agrees(made):
    rows = made.layout
    return (
        rows.lifecycle_states.tolist() == [int(s.state) for s in made]
        and rows.alpha_blend.tolist() == pytest.approx([s.alpha for s in made])
        and rows.state_steps.tolist() == [s.state_step for s in made]
        and rows.error_counts.tolist() == [s.errors for s in made]
    )


def test_a_new_table_is_dormant_throughout():
    made = table()
    assert [str(seed.id) for seed in made] == ["a/0", "a/1", "b/0"]
    assert {seed.state for seed in made} == {State.DORMANT} and agrees(made)
    assert [s.id.slot for s in made.of_site("a")] == [0, 1]
    layout = made.layout
    dtypes = [t.dtype for t in (layout.lifecycle_states, layout.alpha_blend, layout.state_steps, layout.error_counts)]
    assert dtypes == [torch.uint8, torch.float32, torch.int64, torch.int32]


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
    layout = made.layout
    tensors = (layout.lifecycle_states, layout.alpha_blend, layout.state_steps, layout.error_counts)
    assert {t.device.type for t in tensors} == {"meta"}
