"""What `esper.attach` refuses before anything is started or made, and what it says of a task that stays here."""

import sys

import pytest
import torch

from esper.errors import InvalidConfig, InvalidRequest
from esper.kasmina.wrap import wrap
from esper.runtime.attach import attach
from esper.runtime.home import Contact
from esper.tolaria.step import build_parts
from esper.tolaria.task import load_task
from tests import builders
from tests.runtime.lines import TOKEN, Host, Peer

TASK = "tests.tolaria.tasks:regression"


def test_an_optimiser_that_newborns_do_not_fit_is_refused(tmp_path):
    task = load_task(TASK)
    model = build_parts(task).model
    batch = task.micro_batches(0)[0]
    handle = wrap(model, "2", 2, run=lambda m: task.forward(m, batch))
    home, folder = tmp_path / "home", tmp_path / "run"
    with pytest.raises(InvalidRequest, match="LBFGS keeps one history"):
        attach(handle, torch.optim.LBFGS(model.parameters()), task=TASK, runtime=str(home), directory=folder)
    assert not folder.exists() and not home.exists()


@pytest.fixture
def peer():
    """A runtime that welcomes whoever comes and listens."""
    made = Peer()
    with Host(made) as host:
        yield made, host


def contact_of(host, folder) -> Contact:
    folder.joinpath("token").write_text(TOKEN)
    return Contact(host.address, str(folder / "token"), 0, "", "")


def wrapped(task):
    parts = build_parts(task)
    batch = task.micro_batches(0)[0]
    return wrap(parts.model, "2", 2, run=lambda m: task.forward(m, batch)), parts.optimizer


@pytest.mark.parametrize("task", [builders.task(), "__main__:make_task"], ids=["object", "main"])
def test_a_task_that_no_worker_can_import_is_tried_here_and_that_is_said_once(tmp_path, monkeypatch, peer, task):
    monkeypatch.setattr(sys.modules["__main__"], "make_task", builders.task, raising=False)
    runtime, host = peer
    handle, optimizer = wrapped(builders.task())
    options = {"runtime": contact_of(host, tmp_path), "directory": tmp_path / "run", "shadow_every_steps": 3}
    with pytest.warns(UserWarning, match="tried inside session.step, on one step of 3") as caught:
        session = attach(handle, optimizer, task=task, **options)
    session.close()
    (said,) = [str(warning.message) for warning in caught]
    assert "no worker can import task 'regression'" in said and "pass task='module:callable'" in said
    assert caught[0].filename == __file__
    assert runtime.texts() == [said]
    assert session.run.shadow is not None and not runtime.lines[0][0].hello.HasField("task")


def test_of_a_task_that_workers_can_import_nothing_is_said(tmp_path, peer):
    _, host = peer
    handle, optimizer = wrapped(load_task(TASK))
    session = attach(handle, optimizer, task=TASK, runtime=contact_of(host, tmp_path), directory=tmp_path / "run")
    session.close()
    assert session.run.shadow is None


def test_a_period_that_is_none_is_refused(tmp_path):
    handle, optimizer = wrapped(builders.task())
    home, folder = tmp_path / "home", tmp_path / "run"
    with pytest.raises(InvalidConfig, match="shadow_every_steps must be >= 1, got 0"):
        attach(handle, optimizer, task=builders.task(), runtime=str(home), directory=folder, shadow_every_steps=0)
    assert not folder.exists() and not home.exists()
