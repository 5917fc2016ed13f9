"""Faults of kernels are charged once, in a resumed run as in the one that died, whether or not they come again."""

import pytest
import torch

from esper.errors import Conflict
from esper.kasmina.lifecycle import SeedId, State
from esper.tolaria.journal import NAME, read_journal
from esper.tolaria.session import Session
from tests.runtime.threads import on_each, thread_ranks
from tests.tolaria.quiet import begin_again, keep_checkpoint, seed_in, session_of, train

SEED = SeedId("2", 0)


def fail(session, *, steps=1):
    """Steps in which the graft is said to fail."""
    for _ in range(steps):
        session.run.executor.grafts[SEED].fault = "raised RuntimeError: by chance"
        train(session, 1)


def errors(session):
    return session.run.executor.table[SEED].errors


def charged(session):
    return [entry.step for entry in read_journal(session.run.directory / NAME) if entry.HasField("failed")]


@pytest.fixture
def begun(tmp_path):
    """A run with a graft on trial, at step 10, where its checkpoint is."""
    session = session_of(tmp_path / "run")
    seed_in(session, State.STABILIZATION)
    train(session, 10)
    keep_checkpoint(session)
    yield session
    session.close()


def test_a_fault_that_does_not_come_again_is_charged_in_the_resumed_run(begun):
    fail(begun, steps=2)
    begun.close()
    again = begin_again(begun.run.directory)
    train(again, 1)
    assert errors(again) == 1 and again.run.muted
    train(again, 1)
    assert errors(again) == 2 and not again.run.muted
    assert charged(again) == [11, 12]
    again.close()


def test_its_third_fault_culls_the_seed_at_the_step_at_which_it_did(begun):
    fail(begun, steps=3)
    assert begun.run.executor.table[SEED].state is State.CULLED
    reason = begun.run.executor.table[SEED].reason
    begun.close()
    again = begin_again(begun.run.directory)
    train(again, 2)
    assert again.run.executor.table[SEED].state is State.STABILIZATION
    train(again, 1)
    assert again.run.executor.table[SEED].state is State.CULLED
    assert again.run.executor.table[SEED].reason == reason
    again.close()


def test_a_fault_that_does_come_again_is_charged_once(begun):
    fail(begun, steps=2)
    begun.close()
    again = begin_again(begun.run.directory)
    fail(again, steps=2)
    assert errors(again) == 2 and charged(again) == [11, 12]
    again.close()


def test_after_the_replay_faults_are_charged_as_ever(begun):
    fail(begun)
    begun.close()
    again = begin_again(begun.run.directory)
    train(again, 5)
    fail(again)
    assert errors(again) == 2 and charged(again) == [11, 16]
    again.close()


def test_a_fault_between_a_step_and_its_checkpoint_is_charged_in_the_next(tmp_path):
    session = session_of(tmp_path / "run")
    seed_in(session, State.STABILIZATION)
    train(session, 10)
    session.run.executor.grafts[SEED].fault = "raised RuntimeError: in an evaluation"
    keep_checkpoint(session)
    session.close()
    again = begin_again(tmp_path / "run")
    assert errors(again) == 0
    train(again, 1)
    assert errors(again) == 1
    again.close()


def test_a_run_that_has_no_graft_where_the_journal_says_that_it_failed_is_refused(begun):
    fail(begun)
    begun.close()
    again = begin_again(begun.run.directory)
    again.run.executor.cull(SEED, again.run.parts.optimizer, 10, "by hand")
    train(again, 1)
    with pytest.raises(Conflict, match=r"the kernel of 2/0 failed at step 11, where this run has no graft of it"):
        again.decide()
    again.close()


# Several ranks: a vote acts one step after it was begun


def on_ranks(folders, *, checkpoints=None):
    """A session on each of two ranks, both trained on the same batches, so that nothing need be averaged."""

    def begin(pair):
        ranks, folder = pair
        session = session_of(folder, task=None)  # whose batch each rank is given whole
        session.close()
        session.run.ranks = ranks
        session = Session(session.run)
        session.replicas.close()
        if checkpoints is not None:
            return begin_again(folder, session=session, checkpoints=checkpoints)
        seed_in(session, State.STABILIZATION)
        return session

    return on_each(list(zip(thread_ranks(2), folders, strict=True)), begin)


def state_of(session):
    tensors = session.run.capture().all_tensors()
    seeds = [(str(s.id), s.state.name, s.alpha, s.errors, s.state_step) for s in session.run.executor.table]
    return tensors, (session.run.step, session.progress.mean, seeds)


def same(a, b):
    tensors, others = a[0], b[0]
    return (
        a[1] == b[1]
        and tensors.keys() == others.keys()
        and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    )


def test_a_run_that_dies_between_a_vote_and_its_effect_resumes_to_the_same(tmp_path):
    """The second rank's third fault is voted on at step 10 and culls the seed on both at step 11."""
    folders = [tmp_path / "first", tmp_path / "other"]

    def until_the_vote(session):
        train(session, 7)
        fail(session, steps=3) if session.run.ranks.rank else train(session, 3)
        keep_checkpoint(session)

    def go_on(session):
        states = []
        for steps in (1, 14):
            train(session, steps)
            states.append(state_of(session))
        return states

    sessions = on_ranks(folders)
    assert on_each(sessions, until_the_vote) == [None, None]
    assert [errors(session) for session in sessions] == [2, 2]
    died = [(folder / NAME).read_bytes() for folder in folders]
    undisturbed = on_each(sessions, go_on)
    for session in sessions:
        assert session.run.executor.table[SEED].state is State.CULLED
        session.close()
    for folder, journal in zip(folders, died, strict=True):
        (folder / NAME).write_bytes(journal)
    resumed = on_ranks(folders, checkpoints=folders[0])
    found = on_each(resumed, go_on)
    for session in resumed:
        session.close()
    for ours, theirs in zip(undisturbed, found, strict=True):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    assert "failed 3 times" in resumed[0].run.executor.table[SEED].reason
