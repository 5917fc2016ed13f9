"""What comes from outside acts once, at a decision point, after it was journaled."""

import pytest

from esper.api.common.v1 import resource_pb2, seed_pb2, training_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import DeadlineExceeded, Unavailable
from esper.kasmina.lifecycle import SeedId, State
from esper.tolaria.journal import read_journal
from esper.tolaria.line import Loaded
from esper.tolaria.spool import delete
from tests import builders
from tests.tolaria.quiet import ARTIFACT, everything, seed_in, session_of, train

SEED = SeedId("2", 0)


@pytest.fixture
def session(tmp_path):
    made = session_of(tmp_path / "run")
    train(made, 10)
    yield made
    made.arrivals.journal.close()


def ref(slot=0):
    return seed_pb2.SeedRef(run_id="quiet", site="2", slot=slot)


def command(sequence, command_id=None, **action):
    action = action or {"pause": control_pb2.Pause(paused=True)}
    made = control_pb2.ControlCommand(
        command_id=command_id or f"c{sequence}", run_id="quiet", issuer="test", reason="to see", **action
    )
    return trainer_pb2.SequencedCommand(sequence=sequence, command=made)


def arrive(session, *items):
    session.run.line.inbox += items
    session.decide()


def journaled(session):
    return [entry.WhichOneof("event") for entry in read_journal(session.arrivals.journal.path)]


def outcomes(session):
    return [(o.command_id, o.applied) for o in session.run.line.said("outcome")]


def test_nothing_acts_between_decision_points(session):
    session.run.line.inbox.append(command(1))
    train(session, 5)
    assert not session.commands.paused
    session.decide()
    assert session.commands.paused


def test_a_command_acts_once(session):
    arrive(session, command(1), command(1))
    arrive(session, command(1))
    assert outcomes(session) == [("c1", True)]
    assert journaled(session) == ["command"]


def test_a_command_that_was_published_twice_acts_once(session):
    arrive(session, command(1, "same"))
    arrive(session, command(2, "same"))
    assert outcomes(session) == [("same", True)]
    assert session.arrivals.last_command_sequence == 1


def test_a_refused_command_is_answered_and_not_tried_again(session):
    cull = command(1, cull=control_pb2.Cull(seed=ref()))
    arrive(session, cull, cull)
    assert outcomes(session) == [("c1", False)]
    packet = session.run.line.said("state")[-1]
    assert [o.command_id for o in packet.outcomes] == ["c1"]
    session.decide()
    assert not session.run.line.said("state")[-1].outcomes


def test_a_kernel_is_taken_once(session):
    arrive(session, command(1, germinate=germinate()))
    kernel = builders.kernel_for(session.run.executor, SEED)
    arrive(session, Loaded(SEED, ARTIFACT, kernel), Loaded(SEED, ARTIFACT, kernel))
    assert session.run.executor.table[SEED].state is State.TRAINING
    assert [job.WhichOneof("work") for job in session.run.line.said("job")] == ["trial"]


def germinate():
    assignment = control_pb2.Assignment(seed=ref(), artifact_id=ARTIFACT, title="mlp")
    return control_pb2.Germinate(event_id="event", assignments=[assignment], nursery_steps=20)


def test_a_kernel_that_cannot_be_loaded_culls_its_seed(session):
    arrive(session, command(1, germinate=germinate()))
    arrive(session, Loaded(SEED, ARTIFACT, None, "its digest is wrong"))
    seed = session.run.executor.table[SEED]
    assert (seed.state, seed.reason) == (State.CULLED, "its kernel cannot run: its digest is wrong")
    assert not session.adaptations.events


def test_a_kernel_that_comes_too_late_is_let_go(session):
    arrive(session, command(1, germinate=germinate()))
    arrive(session, command(2, cancel=control_pb2.Cancel(seed=ref())))
    before = everything(session)
    arrive(session, Loaded(SEED, ARTIFACT, builders.kernel_for(session.run.executor, SEED)))
    assert session.run.loading == 0
    session.run.loading = 1
    assert everything(session) == before


def test_a_reply_that_is_not_news_does_not_set_the_controller_back(session):
    def reply(n):
        return trainer_pb2.DecisionReply(sequence=n, controller_state=b"%d" % n)

    arrive(session, reply(2), reply(1), reply(2))
    assert session.arrivals.controller_state == b"2"
    assert journaled(session) == ["decision"]


def trying(session):
    seed_in(session, State.TRAINING)
    arrive(session, command(1, insert=control_pb2.Insert(seed=ref(), ramp_steps=2)))
    (twin,) = session.run.line.said("job")
    return twin


def state_of_twin(session, twin, step, *, partial=True):
    path = session.run.spool.folder / f"twin-{step}.safetensors"
    path.write_bytes(b"x")
    snapshot = training_pb2.SnapshotReference(step=step, path=str(path))
    answer = nursery_pb2.TwinResult(snapshots=[snapshot], partial=partial)
    return nursery_pb2.JobResult(job_id=twin.job_id, run_id="quiet", twin=answer)


def test_a_twins_state_counts_once(session):
    twin = trying(session)
    arrive(session, state_of_twin(session, twin, 50), state_of_twin(session, twin, 50))
    arrive(session, state_of_twin(session, twin, 50))
    assert list(session.adaptations.grafts[SEED].twin) == [50]
    assert journaled(session).count("result") == 1
    arrive(session, state_of_twin(session, twin, 55, partial=False), state_of_twin(session, twin, 55, partial=False))
    assert twin.job_id not in session.run.outstanding
    assert journaled(session).count("result") == 2


def test_a_result_nobody_waits_for_is_dropped_and_its_files_with_it(session):
    twin = trying(session)
    arrive(session, command(2, cull=control_pb2.Cull(seed=ref())))
    assert session.run.line.said("cancelled_job") == [twin.job_id]
    late = state_of_twin(session, twin, 50)
    arrive(session, late)
    assert "result" not in journaled(session)
    delete(session.run.spool.sweep())
    delete(session.run.spool.sweep())
    assert all(path.name.startswith("point-") for path in session.run.spool.folder.iterdir())


def test_a_failed_job_is_said_and_its_files_are_let_go(session):
    train(session, 10)
    session.decide()
    (job,) = [j for j in session.run.line.said("job") if j.measure.label == "validation"]
    failure = resource_pb2.Failure(code=13, message="out of memory")
    result = nursery_pb2.JobResult(job_id=job.job_id, failure=failure, measure={"label": "validation"})
    arrive(session, result, result)
    notes = [note.text for note in session.run.line.said("note")]
    assert notes == [f"nursery job {job.job_id} failed: out of memory"]
    assert session.validations.latest is None


def test_a_validation_is_taken_once(session):
    train(session, 10)
    session.decide()
    job = session.run.line.said("job")[-1]
    answer = nursery_pb2.MeasureResult(label="validation", arm_losses=[0.5], arm_steps=[20])
    result = nursery_pb2.JobResult(job_id=job.job_id, measure=answer, flops=7.0)
    arrive(session, result, result)
    arrive(session, result)
    assert session.validations.latest == (20, 0.5)
    assert session.run.nursery_flops == 7.0
    assert (session.run.spool.folder / f"state-20-{session.run.files}.safetensors").exists()


def test_a_run_without_a_task_asks_for_nothing(tmp_path):
    session = session_of(tmp_path / "run", task=None)
    train(session, 20)
    session.decide()
    assert not session.run.line.said("job")
    session.arrivals.journal.close()


# Waiting


def test_a_deterministic_run_waits_for_its_reply(tmp_path):
    session = session_of(tmp_path / "run", deterministic=True)
    train(session, 10)
    with pytest.raises(DeadlineExceeded):
        session.decide()
    assert session.arrivals.stalls == 1
    session.arrivals.journal.close()


def test_a_run_as_it_comes_never_waits(session):
    session.decide()
    assert session.arrivals.stalls == 0
    assert session.run.line.said("progress")[-1].stalled_steps == 0


def test_a_kernel_that_a_resume_needs_and_cannot_have_is_an_error(session):
    session.run.line.inbox += [command(5), Loaded(SEED, ARTIFACT, None, "it was archived")]
    interface = session.run.executor.offered(SEED)
    with pytest.raises(Unavailable, match="is needed to resume and cannot be loaded: it was archived"):
        session.arrivals.load_now(SEED, ARTIFACT, interface)
    session.decide()
    assert session.commands.paused  # what else had come is not lost
