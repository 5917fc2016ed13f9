"""The batch a run trained on is the task's own, or the twin would learn from other data."""

import pytest
import torch

from esper.errors import InvalidRequest
from esper.tolaria.batches import check_batch, is_checked, shard
from esper.tolaria.task import same_batch
from tests import builders
from tests.tolaria.quiet import session_of


def test_the_tasks_own_batch_is_accepted_at_every_step():
    task = builders.task()
    for step in range(70):
        check_batch(task, step, task.batch(step))


@pytest.mark.parametrize("step", [0, 1, 2, 4, 8, 64])
def test_another_batch_is_refused_where_it_is_looked_at(step):
    task = builders.task()
    with pytest.raises(InvalidRequest, match=rf"the batch of step {step} is not what task 'regression' gives for it"):
        check_batch(task, step, task.batch(step + 1))


def test_only_powers_of_two_are_compared():
    assert [step for step in range(130) if is_checked(step)] == [0, 1, 2, 4, 8, 16, 32, 64, 128]


def test_between_them_a_session_asks_for_no_batch(tmp_path):
    session = session_of(tmp_path / "run")
    for step in range(3):
        session.step(session.run.task.batch(step), 0.5)
    session.step(None, 0.5)
    assert session.steps_done == 4
    session.close()


def test_micro_batches_are_compared_as_a_list():
    task = builders.task(accumulate=2, batch=lambda step: [(torch.full((2,), float(step + i)),) for i in range(2)])
    check_batch(task, 4, task.micro_batches(4))
    with pytest.raises(InvalidRequest):
        check_batch(task, 4, task.micro_batches(4)[:1])


def test_a_session_refuses_a_step_on_other_data(tmp_path):
    session = session_of(tmp_path / "run")
    with pytest.raises(InvalidRequest, match=r"take batches from task\.batch\(session\.steps_done\)"):
        session.step((torch.zeros(2, 5), torch.zeros(2, 3)), 0.5)
    assert session.steps_done == 0
    session.close()
    session.arrivals.journal.close()


def test_the_shares_of_all_ranks_are_the_batch():
    batch = builders.task().batch(3)
    for world in (1, 2, 4, 16):
        shares = [shard(batch, rank, world) for rank in range(world)]
        assert all(len(x) == 16 // world for x, _ in shares)
        assert same_batch(tuple(torch.cat(parts) for parts in zip(*shares, strict=True)), batch)


def test_what_has_no_rows_goes_to_every_rank():
    batch = {"ids": torch.arange(6), "scale": torch.tensor(2.0), "name": "a", "parts": [torch.ones(4, 3)]}
    mine = shard(batch, 1, 2)
    assert mine["ids"].tolist() == [3, 4, 5] and mine["scale"] == 2 and mine["name"] == "a"
    assert mine["parts"][0].shape == (2, 3)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(InvalidRequest, match=r"a batch of 16 rows does not divide among 3 ranks"):
        shard(builders.task().batch(0), 0, 3)


def test_a_rank_is_held_to_its_own_share():
    task = builders.task()
    share = shard(task.batch(2), 1, 2)
    check_batch(task, 2, share, 1, 2)
    with pytest.raises(InvalidRequest, match=r"train on session\.shard\(batch\)"):
        check_batch(task, 2, share, 0, 2)
    with pytest.raises(InvalidRequest, match=r"train on session\.shard\(batch\)"):
        check_batch(task, 2, task.batch(2), 1, 2)


def test_a_session_of_one_rank_trains_on_the_whole_batch(tmp_path):
    session = session_of(tmp_path / "run")
    batch = builders.task().batch(0)
    assert session.shard(batch) is batch
    session.arrivals.journal.close()
