"""A run in training, commanded by hand: `esper seed`, `pause`, `resume`, `explain`, `doctor`; then what it leaves."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.cli.main import main
from tests.flow.drills import Training, begin
from tests.runtime.processes import Runtime, until

SEED = "conv1/0"


@pytest.fixture(scope="module")
def training(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """A long, slow run that does not grow by itself; ended by the test that looks at its end."""
    folder = tmp_path_factory.mktemp("live")
    started = begin(
        runtime, folder / "runs", "live", steps=100_000, pause_s=0.005, deterministic=False, policy="never",
        validate_every_steps=50, decision_every_steps=10,
    )  # fmt: skip
    until(lambda: started.events("decision"), 60, started.process.text)
    yield started
    started.process.stop()


Command = Callable[..., str]


@pytest.fixture
def command(
    runtime: Runtime, training: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run `esper ...` beside the run; what it prints, its error for a status that was expected."""
    monkeypatch.chdir(training.directory.parents[1])

    def run(*arguments: str, status: int = 0, home: bool = True) -> str:
        assert main([*arguments, *(["--home", str(runtime.home.root)] if home else [])]) == status
        said = capsys.readouterr()
        return said.out if status == 0 else said.err

    return run


def outcome(training: Training, said: str) -> dict[str, Any]:
    """What the run did with the command that was queued as `said` tells."""
    command_id = said.split()[-1]

    def found() -> list[dict[str, Any]]:
        return [e for e in training.events("outcome") if e["command_id"] == command_id]

    until(found, 30, f"an outcome of {command_id}")
    return found()[0]


def state(command: Command, seed: str = SEED) -> str:
    return next(line.split()[1] for line in command("seed", "list", "live").splitlines() if line.startswith(seed))


def moves(training: Training) -> list[tuple[str, str]]:
    return [(e["from"], e["to"]) for e in training.events("transition") if e["seed"] == SEED]


def kernel(command: Command) -> str:
    def found() -> str | None:
        match = re.search(rf"^{SEED.partition('/')[0]}\s+([0-9a-f]{{64}})", command("seed", "kernels", "live"), re.M)
        return match and match[1]

    until(found, 90, "a promoted kernel")
    return str(found())


def test_seeds_are_listed_with_their_states(command, training):
    lines = command("seed", "list", "live").splitlines()
    assert lines[0].split() == ["seed", "state", "alpha", "kernel", "blueprint", "why"]
    assert {line.split()[0] for line in lines[1:-1]} == {f"conv{c}/{s}" for c in (1, 2, 3) for s in range(4)}
    assert {line.split()[1] for line in lines[1:-1]} == {"DORMANT"}
    assert re.fullmatch(r"as of step \d+", lines[-1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("seed", "list", "nobody"), ("no run 'nobody'", "runs: live")),
        (("seed", "cull", "nobody", SEED), ("no run 'nobody'",)),
        (("seed", "cull", "live", "conv9/0"), ("no seed conv9/0 in run 'live'", "conv1, conv2, conv3")),
        (("seed", "cull", "live", "conv1"), ("<site>/<slot>", "'conv1'")),
        (("seed", "cull", "live", "conv1/first"), ("<site>/<slot>",)),
        (("seed", "kernels", "nobody"), ("no run 'nobody' is known", "live")),
        (("seed", "germinate", "live", SEED, "short"), ("short", "six digits")),
        (("pause", "nobody"), ("no run 'nobody'",)),
        (("explain", "live/9999999/1"), ("live/9999999/1",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) and len(value) < 6 else "",
)
def test_a_command_for_what_is_not_there_is_refused_by_name(command, arguments, words):
    err = command(*arguments, status=1)
    assert err.startswith("esper: ") and "Traceback" not in err
    assert all(word in err for word in words), err


def test_growth_is_paused_and_resumed(command, training):
    assert outcome(training, command("pause", "live"))["applied"]
    refused = outcome(training, command("seed", "germinate", "live", SEED, kernel(command)))
    assert not refused["applied"] and "growth is paused; resume it with `esper resume <run>`" in refused["detail"]
    assert state(command) == "DORMANT"
    assert outcome(training, command("resume", "live"))["applied"]


def test_a_seed_is_germinated_tried_and_culled_by_hand(command, training):
    artifact_id = kernel(command)
    done = outcome(training, command("seed", "germinate", "live", SEED, artifact_id[:12], "--nursery-steps", "5"))
    assert done["applied"] and "1 seeds germinated" in done["detail"]
    line = ""

    def trained() -> bool:
        nonlocal line
        line = next(line for line in command("seed", "list", "live").splitlines() if line.startswith(SEED))
        return line.split()[1] == "TRAINING"

    until(trained, 30)
    assert outcome(training, command("seed", "cull", "live", SEED))["applied"]
    until(lambda: "CULLED" in [to for _, to in moves(training)], 30)
    # at the next decision point the policy, which has no nursery, inserts it: the order to cull may come after that
    assert moves(training)[:3] == [("DORMANT", "GERMINATED"), ("GERMINATED", "LOADING"), ("LOADING", "TRAINING")]
    culled = next(e for e in training.events("transition") if e["seed"] == SEED and e["to"] == "CULLED")
    assert culled["reason"].startswith("from the command line")
    assert artifact_id[:12] in line
    assert state(command) in ("CULLED", "DORMANT")
    assert all(e["reason"] for e in training.events("transition"))


def test_a_kernel_nobody_promoted_is_recorded_as_the_reason_of_the_cull(command, training):
    done = outcome(training, command("seed", "germinate", "live", "conv2/0", "0" * 64))
    assert done["applied"]
    until(lambda: [e for e in training.events("transition") if e["seed"] == "conv2/0" and e["to"] == "CULLED"], 30)
    culled = next(e for e in training.events("transition") if e["seed"] == "conv2/0" and e["to"] == "CULLED")
    assert "0" * 12 in culled["reason"]


@pytest.mark.parametrize("verb", ["cull", "release"])
def test_what_a_seeds_state_does_not_allow_is_refused_and_recorded(command, training, verb):
    refused = outcome(training, command("seed", verb, "live", "conv3/3"))
    assert not refused["applied"]
    assert "refused" in refused["detail"] and "conv3/3" in refused["detail"]


def test_a_decision_is_explained(command, training):
    decided = training.events("decision")[-1]
    text = command("explain", decided["decision_id"])
    assert f"decision   {decided['decision_id']}" in text
    assert f"at step {decided['step']} by policy never: {decided['decision']}" in text
    assert f"because    {decided['reason']}" in text


def test_the_doctor_finds_the_runtime(command, runtime):
    lines = command("doctor").splitlines()
    found = {line[3:].split()[0]: line for line in lines}
    assert set(found) == {"python", "torch", "cuda", "ops", "compiler", "broker", "isolation", "forge", "runtime"}
    assert found["runtime"].startswith("ok ") and f"SERVING on {runtime.contact.address}" in found["runtime"]
    assert found["broker"].startswith("ok ")
    assert "kernels for cpu" in found["forge"]
    absent = command("doctor", "--home", "nowhere", home=False).splitlines()
    assert "no runtime runs in nowhere; start one with `esper up --home nowhere`" in absent[-1]
    assert absent[-1].startswith("no ")


@pytest.mark.slow
def test_another_process_as_the_same_run_is_refused(runtime, training, tmp_path):
    second = begin(runtime, tmp_path, "live", steps=100, policy="never")
    assert second.process.wait(60) == 1
    assert "run 'live' is attached by another process; stop that one, or choose another run id" in second.process.text
    assert "Traceback" not in second.process.text
    assert training.process.running


def test_sigterm_stops_it_with_all_it_needs_to_go_on(command, training):
    training.process.process.send_signal(signal.SIGTERM)
    assert training.process.wait(60) == 130, training.process.text
    until(lambda: training.events("goodbye"), 20)
    (said,) = training.events("goodbye")
    assert said["stopped"] and not said["completed"] and not said["error"]
    assert (training.directory / f"checkpoints/step-{said['step']:09d}").is_dir()
    assert (training.directory / "spool").is_dir()
    assert not (training.directory / "result.json").exists()
    words = f"stopped at step {said['step']} of 100000"
    assert command("runs", home=False).splitlines()[1].endswith(words)
    assert f"{words}; go on: esper train --resume live" in command("show", "live", home=False)


def test_it_goes_on_to_its_end_with_its_result(runtime, training):
    (said,) = training.events("goodbye")
    last = said["step"] + 100
    again = begin(
        runtime, training.directory.parent, "live", steps=last, resume=True, deterministic=False, policy="never",
        validate_every_steps=50, decision_every_steps=10,
    )  # fmt: skip
    again.finish()
    assert training.result["steps"] == last
    until(lambda: len(training.events("goodbye")) == 2, 20)
    assert training.events("goodbye")[1]["completed"]
    assert not (training.directory / "spool").exists()


def test_a_command_after_its_end_is_refused(command):
    assert "run 'live' is over" in command("pause", "live", status=1)


def test_it_is_listed_and_shown(command, training):
    table = command("runs", home=False).splitlines()
    assert any(line.startswith("live ") and "never" in line for line in table[1:])
    shown = command("show", "live", home=False)
    assert f"test_loss   {training.result['test_loss']}" in shown
    assert "model.py" in shown and "events.jsonl" in shown


@pytest.mark.parametrize("verb", ["show", "export", "rebuild"])
def test_a_run_that_is_not_there_is_named_with_those_that_are(command, verb):
    err = command(verb, "gone", status=1, home=False)
    assert err == "esper: no run 'gone' below runs; there are: live. One that is elsewhere is named by its folder\n"


def test_it_is_rebuilt_and_proved_equal(command):
    said = command("rebuild", "live", home=False)
    assert re.search(r"rebuilt from 0 fossils and model\.pt; \d+ outputs equal those of model\.py", said)


def test_it_is_exported_as_torch_alone(command, tmp_path):
    command("export", "live", "--to", str(tmp_path / "out"), home=False)
    source = (tmp_path / "out" / "model.py").read_text()
    assert "import torch" in source and "esper" not in re.sub(r'""".*?"""', "", source, flags=re.S)
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert sum(tensor.numel() for tensor in state.values()) == 662


def test_changed_weights_are_found_by_rebuild(command, training):
    path = training.directory / "model.pt"
    kept = path.read_bytes()
    state = torch.load(path, weights_only=True)
    source = (training.directory / "model.py").read_text()
    try:
        assert ".mean(" in source
        (training.directory / "model.py").write_text(source.replace(".mean(", ".sum(", 1))
        err = command("rebuild", "live", status=1, home=False)
        assert "the rebuilt model differs from model.py by up to" in err
        (training.directory / "model.py").write_text(source)
        del state["conv1.weight"]
        torch.save(state, path)
        assert "conv1.weight" in command("rebuild", "live", status=1, home=False)
        path.write_bytes(kept[: len(kept) // 2])
        assert "model.pt" in command("rebuild", "live", status=1, home=False)
    finally:
        path.write_bytes(kept)
        (training.directory / "model.py").write_text(source)


def test_a_damaged_file_of_a_run_is_named(command, training):
    path: Path = training.directory / "lineage.json"
    kept = path.read_text()
    try:
        path.write_text("{")
        assert f"{path.relative_to(Path.cwd())} does not parse" in command("show", "live", status=1, home=False)
        path.write_text(json.dumps({"fossils": [{"seed": SEED, "artifact_id": "0" * 64, "step": 5}]}))
        assert "lineage.json and result.json differ in conv1/0" in command("rebuild", "live", status=1, home=False)
    finally:
        path.write_text(kept)
