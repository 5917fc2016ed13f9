"""A start that fails leaves its run id free; what is advised can be followed."""

from pathlib import Path

import pytest

from esper.errors import InvalidConfig, Unavailable
from esper.runtime import conduct as conducting
from esper.runtime.began import has_begun, take_back, way_on
from esper.runtime.spec import TrainSpec


@pytest.fixture
def spec(tmp_path):
    return TrainSpec(task="tests.tolaria.tasks:regression", run_id="r", directory=str(tmp_path / "r"))


@pytest.fixture
def folder(spec, tmp_path):
    """As the start leaves it: a spec, and the training process's log."""
    spec.write()
    (tmp_path / "r" / "trainer.log").write_text("esper: no such device\n")
    return tmp_path / "r"


def test_a_start_that_failed_is_taken_back_and_its_log_stays(spec, folder):
    assert not has_begun(folder)
    assert way_on(folder) == "it had not begun: start it again"
    take_back(spec)
    assert [path.name for path in folder.iterdir()] == ["trainer.log"]
    spec.refuse_taken()
    spec.write()


@pytest.mark.parametrize("made", ["events.jsonl", "journal.jsonl", "spool", "checkpoints"])
def test_a_run_that_began_is_not_taken_back_and_without_a_checkpoint_nobody_is_told_to_resume(spec, folder, made):
    (folder / made).mkdir()
    assert has_begun(folder)
    take_back(spec)
    with pytest.raises(InvalidConfig, match="holds a run; choose another run id"):
        spec.write()
    assert way_on(folder) == "it has no checkpoint yet, so it cannot go on: start it anew under another run id"


def test_a_run_with_a_checkpoint_can_go_on_by_the_name_by_which_it_is_found(folder, tmp_path, monkeypatch):
    checkpoint = folder / "checkpoints" / "step-000000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    assert way_on(folder) == f"go on from its newest checkpoint: esper train --resume {folder}"
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    folder.rename(tmp_path / "runs" / "r")
    assert way_on(Path("runs/r")) == "go on from its newest checkpoint: esper train --resume r"


def test_a_run_that_was_to_go_on_keeps_its_spec(spec, folder):
    resumed = TrainSpec(task=spec.task, run_id="r", directory=spec.directory, resume=True)
    take_back(resumed)
    assert (folder / "spec.json").exists()


def test_without_a_runtime_nothing_is_written(spec, tmp_path, monkeypatch):
    def none_starts(_home: object) -> None:
        raise Unavailable("the runtime did not start")

    monkeypatch.setattr(conducting, "find_or_start_runtime", none_starts)
    with pytest.raises(Unavailable, match="did not start"):
        conducting.conduct(spec, live=False, controls=False)
    assert not (tmp_path / "r").exists()


def test_a_taken_run_id_is_refused_before_a_runtime_is_started(spec, folder, monkeypatch):
    monkeypatch.setattr(conducting, "find_or_start_runtime", lambda _home: pytest.fail("it was started"))
    (folder / "journal.jsonl").write_text("")
    with pytest.raises(InvalidConfig, match="holds a run"):
        conducting.conduct(spec, live=False, controls=False)
    assert (folder / "spec.json").exists()


def test_a_folder_that_cannot_be_a_runs_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    spec = TrainSpec(task="x:y", run_id="r", directory=str(tmp_path / "file" / "r"))
    with pytest.raises(InvalidConfig, match=r"the run cannot be kept in .*file/r: .*Not a directory; start it where"):
        spec.write()
