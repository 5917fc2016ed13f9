"""`esper runs`, `show` and `--resume`: how runs are found, whatever their folders hold."""

import json

import pytest

from esper.errors import Corrupt
from esper.runtime.runs import read_run

HELLO = {"kind": "hello", "run_id": "mine", "task": "sums", "policy": "plateau", "total_steps": 40}
FOSSIL = {"seed": "fc/0", "artifact_id": "a" * 64, "step": 3}


def keep(folder, run_id="one", **spec):
    """A run as `esper train` leaves it."""
    folder.mkdir(parents=True)
    values = {"task": "a:b", "run_id": run_id, "arguments": {}, "import_paths": [], "directory": str(folder)} | spec
    (folder / "spec.json").write_text(json.dumps(values))
    return folder


def test_a_run_of_ones_own_loop_is_listed_and_shown_and_its_script_goes_on_with_it(esper, tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text(json.dumps(HELLO) + "\n")
    line = esper("runs").out.splitlines()[1].split()
    assert line[:6] == ["mine", "sums,", "in", "a", "loop", "of"] and "plateau" in line
    shown = esper("show", "mine")
    assert shown.status == 0 and "task        sums, in a loop of its own" in shown.out
    said = esper("train", "--resume", "mine")
    assert said.status == 1 and "esper.attach(..., run_id='mine', resume=True)" in said.err
    for command in ("rebuild", "export"):
        said = esper(command, "mine")
        assert said.status == 1 and "esper.unwrap(model)" in said.err, said


def test_a_run_elsewhere_is_found_by_its_folder(esper, tmp_path):
    keep(tmp_path / "out", "far")
    assert "run         far" in esper("show", "out").out
    said = esper("show", "far")
    assert said.status == 1 and "no run 'far' below runs; there are: none. One that is elsewhere" in said.err


def test_a_run_that_is_kept_elsewhere_says_so_when_it_begins(esper, tmp_path):
    (tmp_path / "run.yaml").write_text("task: json:dumps\ndirectory: out\nrun_id: far")
    assert "its name for show, export and --resume is out" in esper("train", "run.yaml").out


def test_a_renamed_folder_is_found_by_either_name(esper, tmp_path):
    keep(tmp_path / "runs" / "kept", "one")
    assert "directory   runs/kept" in esper("show", "one").out
    assert esper("show", "one").out == esper("show", "kept").out
    keep(tmp_path / "runs" / "copy", "one")
    said = esper("show", "one")
    assert said.status == 1 and "2 runs are called 'one'; name a folder: " in said.err


def test_a_renamed_run_goes_on_in_its_folder(esper, tmp_path, monkeypatch):
    keep(tmp_path / "runs" / "kept", "one", directory="runs/one", services=False)
    taken = []
    monkeypatch.setattr("esper.runtime.alone.conduct_alone", lambda spec, **_: taken.append(spec) or 0)
    assert esper("train", "--resume", "one").status == 0
    assert taken[0].directory == "runs/kept" and taken[0].resume


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("spec.json", b"\xff\xfe", "does not parse"),
        ("spec.json", b"{", "does not parse"),
        ("spec.json", b"[1]", "must hold keys and values, got list"),
        ("spec.json", b"{}", "has no task"),
        ("spec.json", b'{"task": 3, "arguments": {}, "import_paths": []}', "task must be str, got 3"),
        ("result.json", b'{"test_loss": "low", "steps": 3}', "test_loss must be a number, got 'low'"),
        ("result.json", b'{"test_loss": 0.5}', "has no steps"),
        ("lineage.json", b'{"fossils": [{}]}', "has no fossils[0].seed"),
        ("lineage.json", b'{"fossils": ["a"]}', "fossils[0] must hold keys and values, got str"),
        ("lineage.json", b"[{}]", "must hold keys and values, got list"),
        ("lineage.json", b'{"fossils": [], "blueprints": {"abc": {}}}', "has no blueprints.abc.title"),
    ],
)
def test_a_damaged_run_is_named_and_hides_no_other(esper, tmp_path, name, text, words):
    keep(tmp_path / "runs" / "sound", "sound")
    (keep(tmp_path / "runs" / "broken", "broken") / name).write_bytes(text)
    listed = esper("runs")
    assert listed.status == 0
    lines = {line.split()[0]: line for line in listed.out.splitlines()}
    assert "a:b" in lines["sound"]
    assert "damaged: " in lines["broken"] and f"runs/broken/{name}" in lines["broken"] and words in lines["broken"]
    for command in ("show", "rebuild", "export"):
        said = esper(command, "broken")
        assert said.status == 1 and words in said.err, said


def test_events_that_do_not_say_how_the_run_began_are_damage(esper, tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    for text, words in ((b"", "does not say how the run began"), (b"\xff", "does not parse")):
        (folder / "events.jsonl").write_bytes(text)
        assert "damaged" in esper("runs").out
        with pytest.raises(Corrupt, match=words):
            read_run(folder)


def test_a_sound_fossil_and_its_blueprint_are_read(tmp_path):
    folder = keep(tmp_path / "one")
    blueprint = {"title": "low_rank", "author": "library", "source": "", "parents": []}
    (folder / "lineage.json").write_text(json.dumps({"fossils": [FOSSIL], "blueprints": {"b": blueprint}}))
    assert read_run(folder).lineage["fossils"] == [FOSSIL]


def test_a_name_that_no_folder_can_have_is_no_run(esper):
    assert "no run 'xxx" in esper("show", "x" * 300).err


def test_runs_may_be_a_file(esper, tmp_path):
    (tmp_path / "runs").write_text("")
    assert esper("runs").out.startswith("no runs yet")
