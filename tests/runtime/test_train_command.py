"""`esper train` and its `--resume` from the command line, where a task fails and where it is mended."""

import json
from pathlib import Path

import pytest

from tests.runtime.processes import Esper
from tests.runtime.sums import sums

pytestmark = pytest.mark.slow

# 200 steps after a checkpoint
TASK = sums('step == 1200 and Path("broken").exists()', 'raise RuntimeError("out of batches")')


@pytest.fixture(scope="module")
def folder(nats_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("project")
    (made / "sums.py").write_text(TASK)
    (made / "broken").touch()
    return made


def esper(folder: Path, *arguments: str) -> tuple[int, str]:
    process = Esper(folder, *arguments)
    return process.wait(240.0), process.text


def test_a_run_whose_task_fails_ends_with_the_reason_goes_on_when_it_is_mended_and_not_once_it_is_over(folder):
    status, said = esper(folder, "train", "sums.py:make_task", "--policy", "never", "--run-id", "s", "--no-view")
    assert status == 1, said
    assert "out of batches" in said
    assert "esper train --resume s" in said

    (folder / "broken").unlink()
    status, said = esper(folder, "train", "--resume", "s", "--no-view")
    assert status == 0, said
    assert "report: " in said
    assert json.loads((folder / "runs/s/result.json").read_text())["steps"] == 1500

    kept = {path.name: path.read_bytes() for path in (folder / "runs/s").iterdir() if path.is_file()}
    status, said = esper(folder, "train", "--resume", "s", "--no-view")
    assert status == 1
    assert "run s ended at its last step, 1500" in said
    assert {path.name: path.read_bytes() for path in (folder / "runs/s").iterdir() if path.is_file()} == kept


def test_resume_heeds_no_argument_that_would_make_it_another_run(folder):
    status, said = esper(folder, "train", "other:task", "--resume", "s", "--steps", "0", "--seed", "0")
    assert status == 1
    assert "cannot heed other:task, --seed, --steps: leave it out" in said
