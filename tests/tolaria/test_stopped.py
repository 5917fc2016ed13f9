"""A run that is stopped before its last step keeps all it needs, and goes on as the run that nobody stopped."""

import functools
import shutil

import pytest

from esper.kasmina.lifecycle import State
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.loop import train
from tests.flow.local import LocalRun
from tests.tolaria import runs
from tests.tolaria.runs import let_go
from tests.tolaria.saga import begin, follow
from tests.tolaria.told import SETTING


def stop_after(local: LocalRun, step: int) -> None:
    """Train until so many steps are done, and stop."""
    follow(local, SETTING, step)
    local.session.stop()


def newest(local: LocalRun) -> int:
    return CheckpointStore(local.run.directory / "checkpoints").latest()[0].step


def goodbyes(local: LocalRun) -> list[tuple[int, bool, bool, str]]:
    said = [message.goodbye for message in local.heard if message.HasField("goodbye")]
    return [(one.step, one.completed, one.stopped, one.error) for one in said]


@pytest.mark.parametrize(
    ("step", "state"),
    [
        (30, State.TRAINING),  # at a decision point; the others are between two
        (53, State.GRAFTING),
        (66, State.STABILIZATION),
        (84, State.FINE_TUNING),
        (155, State.EVALUATING),
        (206, State.LOADING),
        (251, State.ROLLED_BACK),
    ],
    ids=str,
)
def test_what_is_open_stays_open_and_goes_on_as_if_nobody_had_stopped_it(told, step, state):
    told.put_back(step - 5)
    local = begin(told.directory, SETTING, resumed=True)
    stop_after(local, step)
    assert local.run.executor.table.in_states((state,))
    let_go(local)
    assert newest(local) == step
    assert goodbyes(local) == [(step, False, True, "")]
    assert local.heard[-1].HasField("goodbye")
    resumed = told.resume(60)
    assert resumed.losses and resumed.session.steps_done >= step + 30


def test_stopped_in_a_replay_it_says_so_and_goes_on_from_the_checkpoint_that_it_began_with(told):
    told.put_back(165)
    store = CheckpointStore(told.directory / "checkpoints")
    for folder in store.folders():
        if folder.name > "step-000000090":
            shutil.rmtree(folder)
    local = begin(told.directory, SETTING, resumed=True)
    stop_after(local, 143)
    assert local.run.muted
    let_go(local)
    assert goodbyes(local) == [(143, False, True, "")]
    assert newest(local) == 90
    told.resume(60)


def stopping_at(local: LocalRun, step: int):
    """Asks for a stop once `step` steps are done, as a signal does at any time."""
    return lambda: local.session.steps_done >= step


@pytest.fixture
def trained(tmp_path):
    local = runs.begin(tmp_path / "run")
    yield local, functools.partial(train, local.task, local.run.parts, local.session)
    let_go(local)


def test_the_loop_stops_after_the_step_that_it_is_in(trained):
    local, train = trained
    train(100, stop=stopping_at(local, 33))
    assert (local.session.steps_done, local.session.stopped, local.session.ended) == (33, True, False)
    assert newest(local) == 33
    assert local.run.spool.folder.is_dir()


def test_a_stop_that_comes_too_late_ends_the_run(trained):
    local, train = trained
    train(40, stop=stopping_at(local, 40))
    assert (local.session.steps_done, local.session.stopped, local.session.ended) == (40, False, True)
    assert [completed for _, completed, _, _ in goodbyes(local)] == [True]


def test_a_stopped_run_waits_for_its_checkpoint_longer_than_an_ended_one_for_its_last_word(trained, monkeypatch):
    local, train = trained
    waits = []
    monkeypatch.setattr(local.line, "close", lambda timeout_s=10.0: waits.append(timeout_s))
    train(20, stop=lambda: True)
    local.session.close()
    assert waits == [120.0]
