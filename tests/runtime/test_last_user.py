"""`esper train` starts the runtime and others use it: it stays for them, and ends with the last."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from esper.errors import NotFound
from esper.runtime.home import Contact, Home
from tests.flow.drills import PAUSE
from tests.flow.local import QUICK
from tests.runtime.processes import Esper, gone, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TRAINED = "tests.flow.drills:paced_digits"


class Trainings:
    """`esper train` in one folder, as often as is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.made = folder, Home(folder / ".esper"), list[Esper]()

    def begin(self, run_id: str, steps: int, task: str = TRAINED) -> Esper:
        values = {"task": task, "run_id": run_id, "steps": steps, "growth": {**QUICK, "policy": "never"}}
        file = self.folder / f"{run_id}.yaml"
        file.write_text(json.dumps({**values, "import_paths": [str(self.folder)]}))
        self.made.append(Esper(self.folder, "train", str(file), "--no-view"))
        return self.made[-1]

    def contact(self) -> Contact | None:
        try:
            return self.home.contact()
        except NotFound:
            return None

    def trains(self, run_id: str, step: int = 1) -> bool:
        """Whether it has gone so far that it has a checkpoint, of step 1,000 or more, or is at a step before."""
        if step >= 1000:
            return any((self.folder / "runs" / run_id / "checkpoints").glob("step-*/manifest.json"))
        return (self.folder / "runs" / run_id / "journal.jsonl").exists()


@pytest.fixture
def trainings(nats_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainings]:
    monkeypatch.setenv(PAUSE, "0.002")
    made = Trainings(tmp_path)
    yield made
    for training in made.made:
        if training.running:
            training.kill()
    if (contact := made.contact()) is not None:  # else it goes by itself
        left = [psutil.Process(contact.pid), *psutil.Process(contact.pid).children(recursive=True)]
        assert gone(left, 30.0) == []


def text(trainings: Trainings) -> str:
    return "\n".join(training.text for training in trainings.made)


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_who_started_the_runtime_goes_and_the_other_trains_to_its_end(trainings, killed):
    first = trainings.begin("first", steps=100_000 if killed else 50)
    until(trainings.contact, 60, text(trainings))
    contact = trainings.contact()
    second = trainings.begin("second", steps=600)
    until(lambda: trainings.trains("second"), 60, text(trainings))
    if killed:
        first.kill()
    else:
        assert first.wait(60) == 0, first.text
    assert trainings.contact() == contact
    assert second.running, second.text
    family = [psutil.Process(contact.pid), *psutil.Process(contact.pid).children(recursive=True)]
    assert second.wait(120) == 0, second.text
    assert "report: " in second.text and (trainings.folder / "runs" / "second" / "report.html").exists()
    assert gone(family, 30.0) == []
    assert trainings.contact() is None


def test_two_that_start_at_once_on_a_new_home_share_one_runtime(trainings):
    both = [trainings.begin(run_id, steps=300) for run_id in ("one", "two")]
    for training in both:
        assert training.wait(120) == 0, training.text
    log = (trainings.home.root / "logs" / "runtime.log").read_text()
    assert log.count("runtime serves on") == 1


def test_a_runtime_that_is_lost_is_named_with_the_way_on(trainings):
    training = trainings.begin("lost", steps=100_000)
    until(lambda: trainings.trains("lost", step=1000), 120, text(trainings))
    contact = trainings.contact()
    os.kill(contact.pid, 9)
    assert training.wait(60) == 1
    assert f"the runtime at {contact.address} (process {contact.pid}) was stopped or killed" in training.text
    assert "go on from its newest checkpoint: esper train --resume lost" in training.text
    assert "UNAVAILABLE" not in training.text and "Traceback" not in training.text


def test_a_start_that_fails_leaves_its_run_id_free(trainings):
    (trainings.folder / "faulty.py").write_text(
        "import dataclasses, os\n"
        "from tests.tolaria.tasks import regression\n"
        "def task():\n"
        "    def none():\n"
        "        raise OSError('no weights here')\n"
        "    return dataclasses.replace(regression(), make_model=none)\n"
    )
    for _ in range(2):
        failed = trainings.begin("again", steps=10, task="faulty:task")
        assert failed.wait(60) == 1
        assert "no weights here" in failed.text and "it had not begun: start it again" in failed.text
    good = trainings.begin("again", steps=10)
    assert good.wait(60) == 0, good.text
