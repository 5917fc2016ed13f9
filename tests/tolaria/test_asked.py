"""A job's id says what it asks: an answer to another question is not taken for its own."""

from pathlib import Path

import pytest

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.tolaria.asked import asked
from esper.tolaria.journal import Journal
from tests.tolaria.quiet import begin_again, keep_checkpoint, session_of, train


def job(*, path="/a/state-20-1.safetensors", size=10, task="m:task", step=20, alpha=1.0, piece="judge", due=30, on=0):
    arm = nursery_pb2.Arm(
        snapshot=training_pb2.SnapshotReference(step=step, path=path, size_bytes=size),
        grafts=[seed_pb2.Graft(artifact_id="k", alpha=alpha)],
    )
    work = nursery_pb2.Measure(task=training_pb2.TaskReference(factory=task), slice=piece, arms=[arm])
    return nursery_pb2.Job(job_id="any", run_id="run", priority=on, due_step=due, measure=work)


@pytest.mark.parametrize("change", [{"path": "/b/state-20-1.safetensors"}, {"size": 11}, {"task": "n:task"}])
def test_a_question_is_the_same_wherever_its_files_and_its_task_lie(change):
    assert asked(job(**change)) == asked(job())


@pytest.mark.parametrize(
    "change",
    [{"path": "/a/state-20-2.safetensors"}, {"step": 21}, {"alpha": 0.5}, {"piece": "test"}, {"due": 40}, {"on": 1}],
)
def test_another_question_has_another_digest(change):
    assert asked(job(**change)) != asked(job())


def test_a_state_that_was_come_to_otherwise_is_another():
    assert len({asked(job()), asked(job(), "a"), asked(job(), "b")}) == 3


def test_the_job_that_is_asked_is_left_as_it_was():
    before = job()
    asked(before)
    assert before == job()


# What the course is: what changes the model, and when


def courses(folder: Path, *entries: trainer_pb2.JournalEntry) -> list[str]:
    folder.mkdir()
    journal = Journal(folder / "journal.jsonl")
    found = [journal.course]
    for entry in entries:
        journal.append(entry)
        found.append(journal.course)
    journal.close()
    return found


def rollback(step, to):
    return trainer_pb2.JournalEntry(step=step, rollback=state_pb2.Rollback(step=step, restored_step=to))


def reply(step):
    return trainer_pb2.JournalEntry(step=step, phase=1, decision=trainer_pb2.DecisionReply(sequence=1))


def test_a_course_is_told_by_what_changed_the_model_and_when(tmp_path):
    begun, gone_back, answered = courses(tmp_path / "a", rollback(20, 10), reply(20))
    assert begun != gone_back == answered
    others = [
        courses(tmp_path / name, entry)[-1] for name, entry in {"b": rollback(21, 10), "c": rollback(20, 5)}.items()
    ]
    assert len({gone_back, *others}) == 3


def test_a_journal_that_is_read_again_has_the_course_that_it_had(tmp_path):
    entries = [rollback(20, 10), reply(20), rollback(40, 30)]
    told = courses(tmp_path / "a", *entries)
    for position in range(len(entries) + 1):
        again = Journal(tmp_path / "a" / "journal.jsonl")
        again.start_replay(position)
        assert again.course == told[position]
        for entry in entries[position:]:
            again.append(entry)
        assert again.course == told[-1]
        again.close()


# A live run that is resumed


@pytest.fixture
def answered(tmp_path):
    """A live run that died at step 20, when it had asked for a validation that the nursery then answered."""
    first = session_of(tmp_path / "run")
    train(first, 10)
    keep_checkpoint(first)
    train(first, 10)
    first.decide()
    (job,) = first.run.line.said("job")
    first.close()
    found = nursery_pb2.MeasureResult(label="validation", arm_losses=[7.0])
    return job, nursery_pb2.JobResult(job_id=job.job_id, run_id="quiet", measure=found)


@pytest.mark.parametrize(("step", "latest"), [(20, (20, 7.0)), (40, None)])
def test_a_resumed_run_takes_the_answer_to_its_own_question_and_to_no_other(tmp_path, answered, step, latest):
    """At step 40 it asks for a validation too, the first one that this life of it asks for."""
    job, result = answered
    again = begin_again(tmp_path / "run")
    train(again, step - 10)
    again.decide()
    (asked_now,) = again.run.line.said("job")
    assert asked_now.job_id.rpartition("/")[2] == job.job_id.rpartition("/")[2]
    again.run.line.inbox.append(result)
    again.decide()
    assert again.validations.latest == latest
    assert (asked_now.job_id in again.run.outstanding) == (latest is None)
    again.close()


def test_what_a_journal_answers_is_not_asked_again(tmp_path, answered):
    job, result = answered
    second = begin_again(tmp_path / "run")
    train(second, 10)
    second.decide()
    second.run.line.inbox.append(result)
    train(second, 10)
    second.decide()
    second.close()
    third = begin_again(tmp_path / "run")
    for _ in range(2):
        train(third, 10)
        third.decide()
    assert third.validations.latest == (20, 7.0)
    assert job.job_id not in third.run.outstanding
    assert job.job_id not in [sent.job_id for sent in third.run.line.said("job")]
    third.close()
