"""In a deterministic run an answer acts when it is due, and in one order whatever order it came in."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.api.common.v1 import training_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.kasmina.lifecycle import SeedId
from esper.tolaria.due import Due
from esper.tolaria.line import Loaded


def due_of(step, *, jobs=(), loading=0, deterministic=True, twin_steps=(), sequence=0, asked=99):
    outstanding = {job.job_id: SimpleNamespace(job=job) for job in jobs}
    run = SimpleNamespace(
        step=step, outstanding=outstanding, loading=loading, deterministic=deterministic, sequence=sequence, jobs=asked
    )
    return Due(run, SimpleNamespace(twin_steps=lambda job_id: set(twin_steps)))


def measure(number, due_step):
    return nursery_pb2.Job(job_id=f"run/measure/{number}", due_step=due_step, measure=nursery_pb2.Measure())


def twin(number, saves, due_step=0):
    return nursery_pb2.Job(job_id=f"run/twin/{number}", due_step=due_step, twin=nursery_pb2.Twin(save_steps=saves))


def answer(job, **fields):
    kind = job.WhichOneof("work")
    empty = {"measure": nursery_pb2.MeasureResult(), "twin": nursery_pb2.TwinResult()}
    return nursery_pb2.JobResult(job_id=job.job_id, **({kind: empty[kind]} | fields))


def saved(job, step):
    states = [training_pb2.SnapshotReference(step=step)]
    return nursery_pb2.JobResult(job_id=job.job_id, twin=nursery_pb2.TwinResult(snapshots=states, partial=True))


def loaded(slot=0):
    return Loaded(SeedId("fc1", slot), "a", None, "no")


def command(sequence):
    return trainer_pb2.SequencedCommand(sequence=sequence)


def test_an_answer_waits_for_its_step():
    job = measure(1, 40)
    assert due_of(39, jobs=[job]).take([answer(job)]) == ([], [answer(job)])
    assert due_of(40, jobs=[job]).take([answer(job)]) == ([answer(job)], [])


def test_in_a_run_as_it_comes_everything_acts_in_order_of_arrival():
    job = measure(1, 40)
    items = [command(9), answer(job), command(3)]
    assert due_of(0, jobs=[job], deterministic=False).take(items) == (items, [])


def test_after_training_nothing_is_too_early():
    job = measure(1, 40)
    due = due_of(10, jobs=[job])
    due.at_once = True
    assert due.take([answer(job)]) == ([answer(job)], [])


def test_a_twins_states_are_due_one_by_one():
    job = twin(1, [60, 70, 80])
    now, later = due_of(70, jobs=[job]).take([saved(job, 80), saved(job, 70), saved(job, 60)])
    assert [r.twin.snapshots[0].step for r in now] == [60, 70]
    assert [r.twin.snapshots[0].step for r in later] == [80]


def test_a_twin_that_failed_is_heard_when_its_next_state_is_due():
    job = twin(1, [60, 70])
    assert due_of(59, jobs=[job]).take([answer(job)])[0] == []
    assert due_of(60, jobs=[job]).take([answer(job)])[0] == [answer(job)]
    assert due_of(69, jobs=[job], twin_steps=[60]).take([answer(job)])[0] == []


def test_what_nobody_waits_for_may_act_at_once():
    assert due_of(0).take([answer(measure(7, 99))])[1] == []


def test_all_is_in_when_kernels_and_due_jobs_are():
    early, late = measure(1, 30), measure(2, 90)
    due = due_of(30, jobs=[early, late], loading=2)
    assert not due.is_all_in([])
    assert not due.is_all_in([answer(early), loaded()])
    assert not due.is_all_in([loaded(0), loaded(1)])
    assert due.is_all_in([answer(early), loaded(0), loaded(1)])


def test_all_is_in_when_a_twin_has_saved_what_is_due():
    job = twin(1, [60, 70, 80])
    due = due_of(70, jobs=[job], twin_steps=[60])
    assert not due.is_all_in([])
    assert due.is_all_in([saved(job, 70)])
    assert due_of(59, jobs=[job]).is_all_in([])


@given(st.permutations(range(6)))
def test_the_order_of_arrival_makes_no_difference(order):
    first, second, twins = measure(2, 10), measure(11, 10), twin(3, [10, 20])
    items = [loaded(0), loaded(1), answer(first), saved(twins, 10), saved(twins, 20), answer(second)]
    due = due_of(20, jobs=[first, second, twins])
    assert due.take([items[i] for i in order])[0] == items


def test_commands_act_after_the_controller_was_asked_with_the_reply_that_they_came_before():
    first, second = trainer_pb2.DecisionReply(sequence=4), trainer_pb2.DecisionReply(sequence=5)
    told = [command(1), first, command(2), second, command(3)]
    assert due_of(50, sequence=4).take(told) == ([], told)
    assert due_of(50, sequence=4).take(told, phase=1) == ([command(1), first], told[2:])
    due = due_of(50, sequence=5)
    assert due.take(told, phase=1) == ([command(1), command(2), first, second], [command(3)])
    due.at_once = True
    assert due.take(told)[1] == []


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_answer_to_a_job_that_is_yet_to_be_asked_for_again_waits(deterministic):
    answered = answer(measure(7, 40))
    early = due_of(50, asked=6, deterministic=deterministic)
    assert early.take([answered]) == ([], [answered])
    early.at_once = True
    assert early.take([answered]) == ([], [answered])
    assert due_of(50, asked=7, deterministic=deterministic).take([answered]) == ([answered], [])


def test_nothing_else_acts_after_the_controller_was_asked():
    job = measure(1, 40)
    assert due_of(40, jobs=[job]).take([loaded(), answer(job)], phase=1) == ([], [loaded(), answer(job)])


@pytest.mark.parametrize("name", ["run/measure/x", "odd"])
def test_a_job_without_a_number_does_not_break_the_order(name):
    assert due_of(0).take([nursery_pb2.JobResult(job_id=name)])[0]
