"""A disk that takes no more: training goes on where it can, and says what was not written."""

import errno

import pytest

from esper.runtime import trainer
from esper.runtime.spec import TrainSpec
from tests.flow.conftest import Calm
from tests.flow.drills import GROWING, begin, outcome


@pytest.mark.slow
def test_checkpoints_that_cannot_be_written_are_said_and_change_nothing(calm: Calm, runtime, tmp_path):
    folder = tmp_path / "runs" / "drill"
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("")  # no folder can be made here
    training = begin(runtime, tmp_path / "runs", **GROWING)
    training.finish()
    notes = [note for note in training.events("note") if note["level"] == "error"]
    assert notes
    assert all("checkpoint not written" in note["text"] and "free some disk space" in note["text"] for note in notes)
    assert outcome(training) == calm.outcome


def test_a_disk_that_is_full_ends_a_run_with_one_line_that_names_the_file(tmp_path, monkeypatch, capsys):
    def full(spec, *, stop):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "journal.jsonl"))

    path = TrainSpec(task="a:b", directory=str(tmp_path), run_id="r").write()
    monkeypatch.setattr(trainer, "train_run", full)
    monkeypatch.setattr(trainer, "die_with_parent", lambda: None)
    monkeypatch.setattr("sys.argv", ["trainer", str(path)])
    assert trainer.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("esper: ") and said.count("\n") == 1
    assert "No space left on device" in said and "journal.jsonl" in said
