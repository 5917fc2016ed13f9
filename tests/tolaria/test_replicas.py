"""Replicas of one model on several ranks: processes of this machine, gloo between them."""

import pytest

from tests.tolaria.ranked import Seen, run_ranks

pytestmark = pytest.mark.slow  # every test starts processes that import torch


def same(seen: list[Seen]) -> bool:
    return all(other.steps == seen[0].steps and other.moves == seen[0].moves for other in seen)


def targets(seen: Seen) -> set[str]:
    return {move.rpartition(" ")[2] for move in seen.moves}


@pytest.fixture(scope="module", params=[2, 4])
def long(request, tmp_path_factory):
    """1,000 steps of growth, with a loss that is lost on one rank only."""
    world = request.param
    lost = [[505, world - 1], [705, 0]]
    return run_ranks(tmp_path_factory.mktemp("long"), world, steps=1000, lost=lost, end=True)


def test_gradients_and_parameters_are_equal_on_all_ranks_at_every_step(long):
    assert len(long[0].steps) == 1001
    for ours, *others in zip(*(seen.steps for seen in long), strict=True):
        assert all(other == ours for other in others)


def test_that_course_had_growth_culls_fossils_and_rollbacks(long):
    assert {"GRAFTING", "EVALUATING", "FOSSILIZED", "CULLED", "ROLLED_BACK"} <= targets(long[0])
    counts = {count for _, count, *_ in long[0].steps}
    assert len(counts) > 3  # parameters came and went
    for seen in long:
        assert seen.moves == long[0].moves
        assert [rollback[0] for rollback in seen.rollbacks] == [rollback[0] for rollback in long[0].rollbacks]
        assert len(seen.rollbacks) == 2 and seen.rollbacks == long[0].rollbacks
        assert seen.returns == long[0].returns > 0


def test_a_newborns_gradient_is_that_of_the_whole_batch(long):
    for seen in long:
        assert seen.compared > 100 and seen.off_by < 1e-5


def test_the_first_rank_alone_speaks(long):
    first, *others = long
    assert {"state", "job", "checkpoint", "transition", "goodbye"} <= set(first.heard)
    assert all(other.heard == [] for other in others)


def test_without_the_average_the_ranks_part(tmp_path):
    """What DDP does by itself, and so what the tests above would find."""
    seen = run_ranks(tmp_path, steps=150, not_averaged=True)
    assert any("GRAFTING" in move for move in seen[0].moves)
    ours, others = seen[0].steps, seen[1].steps
    parted = next(i for i, (a, b) in enumerate(zip(ours, others, strict=False)) if a != b)
    assert ours[parted][1] > ours[0][1]  # once there was a graft


def test_a_kernel_that_one_rank_cannot_load_is_skipped_by_all(tmp_path):
    seen = run_ranks(tmp_path, steps=60, refused_on=1)
    assert same(seen)
    assert targets(seen[0]) >= {"LOADING", "CULLED"} and not targets(seen[0]) & {"TRAINING", "GRAFTING"}
    assert len({count for _, count, *_ in seen[0].steps}) == 1


def test_a_kernel_that_fails_on_one_rank_is_charged_on_all_and_culled_at_the_third_time(tmp_path):
    faults = list(range(60, 70))
    seen = run_ranks(tmp_path, steps=100, fault_at=faults, fault_on=1, compared=False)
    assert same(seen)
    culled = [move for move in seen[0].moves if move.endswith(("GRAFTING CULLED", "STABILIZATION CULLED"))]
    assert culled


def test_ranks_that_began_with_other_weights_get_the_first_ones(tmp_path):
    seen = run_ranks(tmp_path, steps=12, other_weights=True)
    assert same(seen)


def test_ranks_that_have_parted_say_where_on_all(tmp_path):
    """Here another learning rate, as a scheduler that looks at the local loss would give."""
    seen = run_ranks(tmp_path, steps=12, other_rate_on=1, fails=True)
    assert seen[0].error == seen[1].error
    assert seen[0].error.startswith(
        "Conflict: the ranks have parted: the list of learning rates is [0.01] on rank 0 and [0.02]"
    )


def test_the_model_may_be_wrapped_again(tmp_path):
    """DDP then reduces what has grown, and Esper what is newer."""
    seen = run_ranks(tmp_path, steps=400, wrap_again=True)
    assert same(seen) and "FOSSILIZED" in targets(seen[0])
    assert all(s.compared > 20 and s.off_by < 1e-5 for s in seen)


def test_ranks_that_normalise_and_draw_for_themselves_stay_equal(tmp_path):
    """Through a cull that goes on from the twin and a rollback, each with generators of its own."""
    seen = run_ranks(tmp_path, steps=450, task="noisy", lost=[[260, 1]], compared=False)
    assert same(seen)
    assert {"FOSSILIZED", "CULLED"} <= targets(seen[0]) and len(seen[0].rollbacks) == 1
    assert seen[0].returns == seen[1].returns > 0
    assert all(a != b for a, b in zip(seen[0].drawn, seen[1].drawn, strict=True))
