"""The batch a run trained on is the task's own, or the twin would learn from other data."""

import pytest
import torch

from esper.errors import InvalidRequest
from esper.tolaria.batches import check_batch
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


def test_between_powers_of_two_nothing_is_compared():
    asked = []
    task = builders.task(batch=lambda step: asked.append(step))
    check_batch(task, 3, None)
    check_batch(task, 100, None)
    assert not asked


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
    session.arrivals.journal.close()
