"""Checkpoints on disk: whole or absent, few, the newest sound one found; what a full disk leaves."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import threading

import pytest
from google.protobuf import json_format

from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import Corrupt, Exhausted, NotFound, PreconditionFailed
from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import VERSION, CheckpointStore, read_checkpoint
from esper.tolaria.journal import NAME, Journal
from tests.tolaria.checkpoints import dies_at, filled, flip, large_files, manifest, spool, value_of, write


@pytest.fixture
def store(tmp_path):
    warnings = []
    made = CheckpointStore(tmp_path / "run" / "checkpoints", warn=warnings.append)
    made.warnings = warnings
    return made


def steps(store):
    return [int(folder.name.removeprefix("step-")) for folder in store.folders()]


def test_what_is_written_is_read(store):
    folder = write(store, 40, filled(1.5), scalars_json='{"a": 1}')
    found, tensors = store.latest()
    assert (found.step, found.scalars_json, found.version) == (40, '{"a": 1}', VERSION)
    assert value_of(store) == 1.5
    assert found.tensors.path == str(tensors) == str(folder / "tensors.safetensors")
    assert found.tensors.size_bytes == tensors.stat().st_size
    assert [file.size_bytes for file in found.files] == [path.stat().st_size for path in large_files(folder)]


def test_sha256sum_reads_its_sums(store):
    folder = write(store, 40, filled(1.0))
    said = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    names = ["manifest.json", "tensors.safetensors", large_files(folder)[0].name]
    assert said.stdout == "".join(f"{name}: OK\n" for name in names)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "SHA256SUMS"])


def test_the_latest_five_are_kept(store):
    for step in range(10, 90, 10):
        write(store, step, filled(step))
    assert steps(store) == [80, 70, 60, 50, 40]
    assert sorted(p.name for p in store.folder.iterdir()) == [f"step-{s:09d}" for s in (40, 50, 60, 70, 80)]


def test_the_same_step_again_takes_the_place_of_the_first(store):
    write(store, 40, filled(1.0))
    write(store, 40, filled(2.0))
    assert value_of(store) == 2.0
    assert len(list(store.folder.iterdir())) == 1


def test_a_checkpoint_of_an_earlier_step_drops_those_of_what_was_undone(store):
    for step in (10, 20, 30, 25):
        write(store, step, filled(step))
    assert steps(store) == [25, 20, 10]
    assert len(list(store.folder.iterdir())) == 3


@pytest.mark.parametrize("name", ["tensors.safetensors", "manifest.json", "SHA256SUMS", "a large tensor"])
@pytest.mark.parametrize("damage", ["first", "last", "cut", "longer", "gone"])
def test_a_damaged_newest_one_falls_back_to_an_older_one_and_says_so(store, name, damage):
    write(store, 10, filled(1.0))
    folder = write(store, 20, filled(1.0))
    path = large_files(folder)[0] if name == "a large tensor" else folder / name
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        flip(path, 0 if damage == "first" else -2)
    assert store.latest()[0].step == 10
    assert value_of(store) == 1.0
    assert "step-000000020" in store.warnings[0]
    assert store.warnings[0].endswith("trying the next older checkpoint")


def test_no_sound_one_is_an_error_that_says_what_to_do(store):
    with pytest.raises(NotFound, match=r"no sound checkpoint in .*; start the run anew"):
        store.latest()
    (write(store, 10, filled(1.0)) / "manifest.json").unlink()
    with pytest.raises(NotFound, match=r"no sound checkpoint in .*step-000000010 cannot be read.*; start the run anew"):
        store.latest()


def rewrite_manifest(folder, **changes):
    """A sound checkpoint with another manifest, as another release would have written it."""
    path, sums = folder / "manifest.json", folder / "SHA256SUMS"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    sums.write_text(sums.read_text().replace(before, hashlib.sha256(path.read_bytes()).hexdigest()))


@pytest.mark.parametrize(("version", "besides"), [(2, {}), (4, {"thatFieldIsNew": [1, 2]})])
def test_another_version_is_refused_by_name_and_no_older_one_is_taken_for_it(store, version, besides):
    write(store, 10, filled(1.0))
    rewrite_manifest(write(store, 20, filled(2.0)), version=version, **besides)
    said = rf"manifest\.json is of version {version} and this release reads version 3; go on with the release of Esper"
    with pytest.raises(PreconditionFailed, match=said):
        store.latest()
    assert not store.warnings


def test_a_manifest_of_another_version_is_not_written(store):
    with pytest.raises(PreconditionFailed, match="it is of version 1 and this release writes version 3; run trainer"):
        write(store, 10, filled(1.0), version=1)
    assert not store.folder.exists()


def test_a_manifest_that_is_not_one_is_corrupt(store):
    folder = write(store, 10, filled(1.0))
    rewrite_manifest(folder, step="many")
    with pytest.raises(Corrupt, match=r"checkpoint .* cannot be read"):
        read_checkpoint(folder)


def test_a_snapshot_that_is_gone_is_not_a_checkpoint(store, tmp_path):
    with pytest.raises(NotFound, match=r"checkpoint of step 10 is not written: its tensors .* are gone from the spool"):
        store.write(manifest(10), tmp_path / "gone.safetensors")
    assert not store.folder.exists()


@pytest.mark.parametrize("kept", [0, 4, 9, 300, -1])
def test_a_snapshot_that_is_none_is_not_a_checkpoint(store, tmp_path, kept):
    path = spool(tmp_path, filled(1.0))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(Corrupt, match=r"spooled\.safetensors is not a snapshot"):
        store.write(manifest(10), path)
    assert not store.folder.exists()


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_a_full_disk_leaves_nothing_half_written(store, tmp_path, monkeypatch, after):
    for step in (10, 20):
        write(store, step, filled(1.0))
    before = sorted(store.folder.rglob("*"))
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Exhausted, match=r"checkpoint of step 30 cannot be written to .*No space left.*free some disk"):
        write(store, 30, filled(2.0))
    monkeypatch.undo()
    assert sorted(store.folder.rglob("*")) == before
    assert value_of(store) == 1.0
    assert not store.warnings


def test_a_place_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Exhausted, match="cannot be written"):
        write(CheckpointStore(tmp_path / "file" / "checkpoints"), 1, filled(1.0))


def test_a_failure_is_a_note_for_a_run_that_goes_on(store, tmp_path):
    spooled = spool(tmp_path, filled(1.0))
    assert store.write_spooled(manifest(10, tensors={"path": str(spooled)})) is None
    assert value_of(store) == 1.0
    spooled.unlink()
    note = store.write_spooled(manifest(20, tensors={"path": str(spooled)}))
    assert note.level == "error"
    assert note.text.startswith("checkpoint not written: checkpoint of step 20 is not written: its tensors")


@pytest.mark.parametrize(
    ("step", "left"), [(50, [10, 20, 30, 40, 50]), (60, [20, 30, 40, 50, 60]), (35, [10, 20, 30, 35])]
)
def test_a_writer_killed_at_any_call_leaves_whole_checkpoints_only(store, tmp_path, step, left):
    """One takes the place of another; the oldest goes; the run was rolled back."""
    before = CheckpointStore(tmp_path / "before")
    for earlier in (10, 20, 30, 40, 50):
        write(before, earlier, filled(1.0))
    spooled, died = spool(tmp_path, filled(1.0) | {"model.bias": filled(2.0)["model.bias"]}), 0
    while True:
        shutil.copytree(before.folder, store.folder, copy_function=os.link)
        if not dies_at(died + 1, store, step, spooled):
            break
        died += 1
        assert store.latest()[0].step >= min(50, step)
        assert [read_checkpoint(folder).step for folder in store.folders()] == steps(store)
        assert len(steps(store)) >= len(left)
        assert not store.warnings
        shutil.rmtree(store.folder)
    assert died > 10
    assert sorted(p.name for p in store.folder.iterdir()) == [f"step-{s:09d}" for s in left]


def test_what_a_killed_writer_left_of_a_step_that_never_comes_again_is_swept(store, tmp_path):
    write(store, 10, filled(1.0))
    assert dies_at(4, store, 20, spool(tmp_path, filled(2.0)))
    assert {p.name for p in store.folder.iterdir()} == {"step-000000010", "step-000000020.partial"}
    assert value_of(store) == 1.0
    write(store, 25, filled(3.0))
    assert {p.name for p in store.folder.iterdir()} == {"step-000000010", "step-000000025"}


def test_a_crash_while_one_takes_the_place_of_another_loses_neither(store):
    folder = write(store, 20, filled(1.0))
    folder.rename(folder.with_suffix(".replaced"))
    assert value_of(store) == 1.0


def test_a_disk_that_fails_while_one_takes_the_place_of_another_leaves_the_first(store, monkeypatch):
    write(store, 20, filled(1.0))
    rename = type(store.folder).rename

    def failing(path, target):
        if path.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(type(store.folder), "rename", failing)
    with pytest.raises(Exhausted, match="Input/output error"):
        write(store, 20, filled(2.0))
    assert value_of(store) == 1.0
    assert [p.name for p in store.folder.iterdir()] == ["step-000000020"]


def test_a_second_writer_of_the_same_checkpoint_waits_for_the_first(store, monkeypatch):
    """A line that is lost while a checkpoint is written asks for it again."""
    begun, go_on, failed = threading.Event(), threading.Event(), []
    fsync = os.fsync

    def slow(handle):
        begun.set()
        assert go_on.wait(20)
        fsync(handle)

    def writing():
        try:
            write(CheckpointStore(store.folder), 10, filled(1.0))
        except Exception as error:
            failed.append(error)

    monkeypatch.setattr(os, "fsync", slow)
    writers = [threading.Thread(target=writing) for _ in range(2)]
    writers[0].start()
    assert begun.wait(20)
    writers[1].start()
    writers[1].join(0.2)
    go_on.set()
    for writer in writers:
        writer.join(20)
    assert failed == []
    assert value_of(store) == 1.0


def test_one_of_steps_that_the_run_went_back_over_is_passed_over(store):
    store.folder.mkdir(parents=True)
    journal = Journal(store.folder.parent / NAME)
    for step in (10, 20, 30):
        write(store, step, filled(step), journal_position=journal.position)
        journal.append(trainer_pb2.JournalEntry(step=step, decision=trainer_pb2.DecisionReply(sequence=step)))
    journal.rolled_back(trainer_pb2.AttachRequest(rollback={"step": 38, "restored_step": 20}).rollback)
    journal.close()
    assert store.latest()[0].step == 20
    assert store.warnings[0].startswith("the run went back to before checkpoint")
    write(store, 30, filled(31.0), journal_position=4)
    assert store.latest()[0].step == 30  # that one is of the new course


def test_the_digests_are_those_of_the_files(store):
    folder = write(store, 10, filled(1.0))
    found = read_checkpoint(folder)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert found.tensors.digest == digests["tensors.safetensors"]
    assert [digests[path.name] for path in large_files(folder)] == [file.digest for file in found.files]


def test_unless_told_otherwise_damage_is_logged(store, caplog):
    write(store, 10, filled(1.0))
    flip(write(store, 20, filled(2.0)) / "tensors.safetensors")
    assert CheckpointStore(store.folder).latest()[0].step == 10
    assert "trying the next older checkpoint" in caplog.text
    assert caplog.records[0].name == checkpoint.__name__


def test_json_is_what_the_manifest_is(store):
    folder = write(store, 10, filled(1.0))
    text = (folder / "manifest.json").read_bytes()
    assert json_format.Parse(text, trainer_pb2.CheckpointManifest()) == read_checkpoint(folder)
