"""What asks a run to stop, and one Ctrl-C in `esper train`, with services and without: the run goes on afterwards."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from esper.runtime.stopping import how_to_go_on, stop_on_signal
from tests.runtime.processes import Esper, until
from tests.runtime.sums import sums


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(5)
    assert signal.getsignal(number) is before


def test_a_run_without_a_checkpoint_is_not_promised_to_go_on(tmp_path):
    words = how_to_go_on("c", tmp_path, 12, 40)
    assert words.startswith("run c stopped at step 12 of 40, and no checkpoint could be written")
    (tmp_path / "checkpoints/step-000000010").mkdir(parents=True)
    words = how_to_go_on("c", tmp_path, 12, 40)
    assert words == f"run c stopped at step 12 of 40; go on: esper train --resume {tmp_path}"


# slow while it is to be stopped, then at full speed
TASK = sums('step > 500 and Path("slow").exists()', "time.sleep(0.05)")
START = ("train", "sums.py:make_task", "--policy", "never", "--deterministic", "--no-view")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("services", [(), ("--no-services",)], ids=["services", "alone"])
def test_one_interrupt_keeps_the_run_and_it_goes_on_as_it_would_have(nats_server, tmp_path, services):
    (tmp_path / "sums.py").write_text(TASK)
    calm = Esper(tmp_path, *START, *services, "--run-id", "calm")
    assert calm.wait(240) == 0, calm.text

    (tmp_path / "slow").touch()
    training = Esper(tmp_path, *START, *services, "--run-id", "c")
    until(lambda: "step 400: " in training.text, 240)
    training.process.send_signal(signal.SIGINT)
    assert training.wait(120) == 130, training.text
    (tmp_path / "slow").unlink()
    folder = tmp_path / "runs/c"
    goodbye = events(folder, "goodbye")[-1]
    assert goodbye["stopped"] and 400 <= goodbye["step"] < 1500
    words = f"stopped at step {goodbye['step']} of 1500; go on: esper train --resume c"
    assert training.text.splitlines()[-1] == f"esper: run c {words}"
    assert f"stopped at step {goodbye['step']} of 1500" in (folder / "report.html").read_text()
    assert "completed" not in training.text
    assert (folder / "spool").is_dir() and not (folder / "result.json").exists()

    resumed = Esper(tmp_path, "train", "--resume", "c", "--no-view")
    assert resumed.wait(240) == 0, resumed.text
    assert came_to(folder) == came_to(tmp_path / "runs/calm")
    assert events(folder, "goodbye")[-1]["completed"]


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["kind"] == kind]


def came_to(folder: Path) -> tuple[object, object, dict[int, object]]:
    """Its result and its losses on held-out data, all to the last bit."""
    result = json.loads((folder / "result.json").read_text())
    losses = {int(e["step"]): e["loss"] for e in events(folder, "validation") if e["arm"] == "run"}
    return result["test_loss"], result["train_flops"], losses
