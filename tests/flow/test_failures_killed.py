"""Processes killed -9 in the middle of a run: it ends as the run that nobody disturbed, bit for bit.

The run is deterministic and waits for every answer, so an answer that was lost would hold it
up, one that counted twice or came out otherwise would change its result, and an event that
was not kept would be missing from the record.
"""

import functools
import time

import pytest

from tests.flow.conftest import Calm
from tests.flow.drills import GROWING, Training, begin, kill_workers, outcome, stocked
from tests.runtime.processes import Runtime, gone, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def under_way(runtime: Runtime, folder, **options) -> Training:
    """A run that has begun to grow: a trial or twin of it is in the nursery."""
    training = begin(runtime, folder / "runs", pause_s=0.02, **GROWING | options)
    until(lambda: any(int(entry.get("step", 0)) >= 30 for entry in training.journal()), 60, training.process.text)
    return training


def test_the_undisturbed_run_grew(calm: Calm):
    """Else the drills below would prove little."""
    assert [move for move in calm.outcome["moves"] if move[2] == "FOSSILIZED"]
    assert len(calm.outcome["grafts"]) >= 2
    assert len(calm.outcome["losses"]) >= 9
    assert len(calm.kernels) >= 10


def test_the_broker_killed(calm, runtime, tmp_path):
    training = under_way(runtime, tmp_path)
    for _ in range(2):
        broker = runtime.part("nats-server")
        broker.kill()
        assert not gone([broker])
        assert runtime.part("nats-server").pid != broker.pid
        time.sleep(0.5)
    training.finish()
    assert outcome(training) == calm.outcome
    assert runtime.stop() == 0, runtime.text


def test_the_nurserys_workers_killed_and_then_what_they_are_forked_from(calm, runtime, tmp_path):
    training = under_way(runtime, tmp_path)
    kill_workers(runtime, "nursery")
    until(lambda: any(int(entry.get("step", 0)) >= 130 for entry in training.journal()), 60, training.process.text)
    runtime.part("esper.runtime.warm", "esper-nursery-").kill()
    training.finish()
    assert outcome(training) == calm.outcome


def test_the_whole_runtime_killed_and_started_again(calm, runtime, tmp_path):
    """What the nursery and the gateway held in memory is gone with it; the trainer asks again."""
    training = under_way(runtime, tmp_path)
    family = runtime.family()
    address = runtime.contact.address
    runtime.kill()
    assert gone(family) == []
    again = Runtime(tmp_path)
    try:
        assert again.contact.address == address
        training.finish()
        until(lambda: training.events("goodbye"), 20)
        assert outcome(training) == calm.outcome
    finally:
        again.stop()


def test_the_trainer_killed_and_resumed_and_killed_again(calm, runtime, tmp_path):
    """What its messages did not say before it died is missing from the record; its course is the same."""
    training = begin(runtime, tmp_path / "runs", pause_s=0.02, **GROWING)
    for after in (65, 130):
        until(functools.partial(_has_journaled, training, after), 60, training.process.text)
        training.process.kill()
        training = begin(runtime, tmp_path / "runs", pause_s=0.02, resume=True, **GROWING)
    training.finish()
    found = outcome(training)
    moves = found.pop("moves")
    assert moves == [move for move in calm.outcome["moves"] if move in moves]
    assert found == {key: value for key, value in calm.outcome.items() if key != "moves"}


def _has_journaled(training: Training, step: int) -> bool:
    return any(int(entry.get("step", 0)) >= step for entry in training.journal())


def test_the_forges_and_evaluators_workers_killed(calm, tmp_path):
    """On a home without kernels, so that all are being made."""
    runtime = Runtime(tmp_path)
    try:
        begin(runtime, tmp_path / "runs", steps=20, policy="never").finish()
        kill_workers(runtime, "workshop")
        time.sleep(1.0)
        runtime.part("esper.runtime.warm", "esper-workshop-").kill()
        assert stocked(runtime) == calm.kernels
    finally:
        runtime.stop()
