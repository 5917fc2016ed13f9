"""One copy of the run serves all of a decision point, and never two states."""

import pytest
import torch

from esper.kasmina.lifecycle import State
from esper.tolaria import run as module
from esper.tolaria.snapshot import capture
from tests.tolaria.quiet import seed_in, session_of, train


@pytest.fixture
def session(tmp_path):
    made = session_of(tmp_path / "run")
    yield made
    made.close()


def test_a_decision_point_copies_the_run_once(session, monkeypatch):
    made = []
    monkeypatch.setattr(module, "capture", lambda *args, **options: made.append(args) or capture(*args, **options))
    train(session, 20)
    session.decide()  # a validation, a rollback point
    assert len(session.run.line.said("job")) == 1
    assert len(made) == 1


def test_a_copy_is_not_shared_over_a_seeds_move(session):
    train(session, 1)
    run = session.run
    with run.sharing_copies():
        first = run.capture()
        assert run.capture() is first
        seed_in(session, State.EVALUATING)
        second = run.capture()
    assert second is not first
    assert {n for n in second.tensors if "esper_" in n} and not {n for n in first.tensors if "esper_" in n}


def test_a_copy_is_not_shared_beyond_the_decision_point(session):
    train(session, 1)
    with session.run.sharing_copies():
        first = session.run.capture()
    assert session.run.capture() is not first


def test_the_models_part_shares_the_tensors_of_the_whole(session):
    train(session, 1)
    with session.run.sharing_copies():
        whole, model = session.run.capture(), session.run.capture(model_only=True)
    assert model.random is None and model.scalars == {}
    assert model.tensors and all(tensor is whole.tensors[name] for name, tensor in model.tensors.items())
    assert {name.removeprefix("model.") for name in model.tensors} == set(session.run.parts.model.state_dict())


def test_without_the_call_that_copies_all_at_once_the_copies_are_the_same(session, monkeypatch):
    train(session, 3)
    together = capture(session.run.parts, 3)
    monkeypatch.setattr("esper.tolaria.snapshot._CLONE_ALL", None)
    alone = capture(session.run.parts, 3)
    assert together.tensors.keys() == alone.tensors.keys()
    assert all(torch.equal(tensor, alone.tensors[name]) for name, tensor in together.tensors.items())
