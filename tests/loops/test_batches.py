"""A task's batches as a dataset: which step's comes when."""

from itertools import islice

import pytest
from torch.utils.data import DataLoader

from esper.errors import InvalidConfig, PreconditionFailed
from esper.loops.batches import TaskBatches
from esper.loops.transformers import whole_batch
from esper.tolaria.task import same_batch
from tests.loops import tasks


def test_items_are_the_batches_of_the_steps_in_order():
    task = tasks.regression()
    for step, batch in enumerate(islice(TaskBatches(task), 4)):
        assert same_batch(batch, task.batch(step))


def test_under_accumulation_an_item_is_a_micro_batch():
    task = tasks.regression(accumulate=2)
    items = list(islice(TaskBatches(task), 6))
    assert all(same_batch(items[2 * step + i], task.batch(step)[i]) for step in range(3) for i in range(2))


def test_an_epoch_has_whole_steps_and_the_next_one_goes_on():
    task = tasks.regression(accumulate=2)
    batches = TaskBatches(task, steps_per_epoch=3)
    first, second = list(batches), list(batches)
    assert len(first) == len(second) == len(batches) == 6
    assert same_batch(second[0], task.batch(3)[0])


def test_without_epochs_there_is_no_length():
    with pytest.raises(TypeError, match="give steps_per_epoch"):
        len(TaskBatches(tasks.regression()))


def test_batches_that_follow_a_run_begin_where_it_is_and_go_back_with_it():
    task = tasks.regression()
    done = [7]
    batches = TaskBatches(task)
    batches.follow(lambda: done[0])
    items = iter(batches)
    assert same_batch(next(items), task.batch(7)) and same_batch(next(items), task.batch(8))
    done[0] = 3
    batches.go_to(3)
    assert same_batch(next(items), task.batch(3))  # a loader that fetches nothing ahead
    assert same_batch(next(iter(batches)), task.batch(3))  # one that does begins anew


def test_what_was_given_for_a_recent_step_is_known_and_for_another_refused():
    batches = TaskBatches(tasks.regression(accumulate=2))
    list(islice(batches, 5))
    assert same_batch(batches.given(2), batches.task.batch(2))
    with pytest.raises(PreconditionFailed, match="step 9 on batches that are not from its TaskBatches"):
        batches.given(9)


def test_a_loader_gives_the_very_batches():
    task = tasks.regression()
    loader = DataLoader(TaskBatches(task, steps_per_epoch=3), batch_size=1, collate_fn=whole_batch)
    assert [same_batch(item, task.batch(step)) for step, item in enumerate(loader)] == [True] * 3


def test_a_negative_epoch_is_refused():
    with pytest.raises(InvalidConfig, match="steps_per_epoch must be >= 0"):
        TaskBatches(tasks.regression(), steps_per_epoch=-1)
