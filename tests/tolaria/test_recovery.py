"""What is counted of faults, and the circuit breaker of a run: a kernel that may not run is not asked for for ever."""

import pytest

from esper.api.kasmina.v1 import control_pb2
from esper.errors import Corrupt, DeadlineExceeded, KernelFault, NotFound, ShapeMismatch, Unavailable, Untrusted
from esper.kasmina.breaker import MAX_LOST
from esper.kasmina.lifecycle import State
from esper.tolaria.journal import read_journal
from esper.tolaria.line import Loaded
from tests.tolaria.quiet import ARTIFACT, session_of, train
from tests.tolaria.test_arrivals import SEED, arrive, command, ref


@pytest.fixture
def session(tmp_path):
    made = session_of(tmp_path / "run")
    made.run.executor.embargo_steps = 1
    train(made, 10)
    yield made
    made.arrivals.journal.close()


def germinate(session, sequence):
    """Have the seed ask for the kernel; it is DORMANT again by then."""
    train(session, 2)
    session.decide()
    assert session.run.executor.table[SEED].state is State.DORMANT
    assignment = control_pb2.Assignment(seed=ref(), artifact_id=ARTIFACT, title="mlp")
    arrive(
        session, command(sequence, germinate=control_pb2.Germinate(event_id=f"e{sequence}", assignments=[assignment]))
    )


def lose(session, error, times):
    for sequence in range(1, times + 1):
        germinate(session, sequence)
        arrive(session, Loaded.failed(SEED, ARTIFACT, error))
        assert session.run.executor.table[SEED].state is State.CULLED


@pytest.mark.parametrize("error", [Corrupt("a bit"), Untrusted("a key"), KernelFault("it raised")], ids=repr)
def test_a_kernel_that_may_not_run_is_not_loaded_a_fourth_time(session, error):
    lose(session, error, MAX_LOST)
    asked = len(session.run.line.loads)
    assert asked == MAX_LOST
    germinate(session, MAX_LOST + 1)
    session.decide()
    seed = session.run.executor.table[SEED]
    assert (seed.state, len(session.run.line.loads)) == (State.CULLED, asked)
    assert "is not loaded again in this run" in seed.reason
    assert session.run.loading == 0
    assert session.run.line.said("performance")[-1].recoveries == {"escalation": MAX_LOST, "circuit_breaker": 1}


def test_a_refusal_is_journaled_as_a_load_that_failed(session):
    """So that a run that is resumed, whose breakers are closed, repeats it."""
    lose(session, Corrupt("a bit"), MAX_LOST)
    germinate(session, MAX_LOST + 1)
    session.decide()
    last = list(read_journal(session.arrivals.journal.path))[-1]
    assert "is not loaded again" in last.loaded.failure.message


@pytest.mark.parametrize(
    "error", [Unavailable("away"), DeadlineExceeded("slow"), NotFound("no"), ShapeMismatch("other")], ids=repr
)
def test_a_library_that_does_not_answer_is_no_fault_of_the_kernel(session, error):
    lose(session, error, MAX_LOST + 1)
    assert len(session.run.line.loads) == MAX_LOST + 1
    assert session.run.recoveries == {"escalation": MAX_LOST + 1}


def test_several_ranks_ask_all_or_none_and_so_all(session):
    lose(session, Corrupt("a bit"), MAX_LOST)
    session.run.ranks = object()
    session.run.load(SEED, ARTIFACT)
    assert len(session.run.line.loads) == MAX_LOST + 1
