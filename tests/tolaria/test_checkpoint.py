"""Checkpoints on disk: whole or absent, few, the newest sound one found; what a full disk leaves."""

import errno
import os
import subprocess

import pytest
from google.protobuf import json_format

from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import Corrupt, Exhausted, NotFound
from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import CheckpointStore, read_checkpoint
from esper.tolaria.journal import NAME, Journal


@pytest.fixture
def store(tmp_path):
    warnings = []
    made = CheckpointStore(tmp_path / "run" / "checkpoints", warn=warnings.append)
    made.warnings = warnings
    return made


@pytest.fixture
def spooled(tmp_path):
    """Writes a snapshot file of some bytes."""

    def write(content=b"tensors" * 1000):
        path = tmp_path / "spooled.safetensors"
        path.write_bytes(content)
        return path

    return write


def manifest(step, **changes):
    return trainer_pb2.CheckpointManifest(**({"version": 1, "run_id": "r", "step": step} | changes))


def steps(store):
    return [int(folder.name.removeprefix("step-")) for folder in store.folders()]


def test_what_is_written_is_read(store, spooled):
    store.write(manifest(40, scalars_json='{"a": 1}'), spooled())
    found, tensors = store.latest()
    assert (found.step, found.scalars_json) == (40, '{"a": 1}')
    assert tensors.read_bytes() == b"tensors" * 1000
    assert found.tensors.path == str(tensors)
    assert found.tensors.size_bytes == 7000


def test_sha256sum_reads_its_sums(store, spooled):
    folder = store.write(manifest(40), spooled())
    said = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert said.stdout == "manifest.json: OK\ntensors.safetensors: OK\n"


def test_the_latest_five_are_kept(store, spooled):
    for step in range(10, 90, 10):
        store.write(manifest(step), spooled())
    assert steps(store) == [80, 70, 60, 50, 40]
    assert sorted(p.name for p in store.folder.iterdir()) == [f"step-{s:09d}" for s in (40, 50, 60, 70, 80)]


def test_the_same_step_again_takes_the_place_of_the_first(store, spooled):
    store.write(manifest(40), spooled(b"first"))
    store.write(manifest(40), spooled(b"second"))
    assert store.latest()[1].read_bytes() == b"second"
    assert len(list(store.folder.iterdir())) == 1


def test_a_checkpoint_of_an_earlier_step_drops_those_of_what_was_undone(store, spooled):
    for step in (10, 20, 30, 25):
        store.write(manifest(step), spooled())
    assert steps(store) == [25, 20, 10]


@pytest.mark.parametrize("name", ["tensors.safetensors", "manifest.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_newest_one_falls_back_to_an_older_one_and_says_so(store, spooled, name, damage):
    store.write(manifest(10), spooled())
    path = store.write(manifest(20), spooled()) / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    found, _ = store.latest()
    assert found.step == 10
    assert len(store.warnings) == 1
    assert "step-000000020" in store.warnings[0]
    assert store.warnings[0].endswith("trying the next older checkpoint")


def test_no_sound_one_is_an_error_that_says_what_to_do(store, spooled):
    with pytest.raises(NotFound, match=r"no sound checkpoint in .*; start the run anew"):
        store.latest()
    (store.write(manifest(10), spooled()) / "manifest.json").unlink()
    with pytest.raises(NotFound):
        store.latest()


def test_another_version_is_not_read(store, spooled):
    folder = store.write(manifest(10, version=2), spooled())
    with pytest.raises(Corrupt, match=r"manifest\.json is of version 2, this release reads 1"):
        read_checkpoint(folder)


def test_a_manifest_that_is_not_one_is_corrupt(store, spooled, monkeypatch):
    monkeypatch.setattr(json_format, "MessageToJson", lambda _: '{"step": "many"}')
    folder = store.write(manifest(10), spooled())
    with pytest.raises(Corrupt, match=r"checkpoint .* cannot be read"):
        read_checkpoint(folder)


def test_a_snapshot_that_is_gone_is_not_a_checkpoint(store, tmp_path):
    with pytest.raises(NotFound, match=r"checkpoint of step 10 is not written: its tensors .* are gone from the spool"):
        store.write(manifest(10), tmp_path / "gone.safetensors")
    assert not store.folder.exists()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_full_disk_leaves_nothing_half_written(store, spooled, monkeypatch, after):
    store.write(manifest(10), spooled(b"older"))
    before = sorted(store.folder.rglob("*"))
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Exhausted, match=r"checkpoint of step 20 cannot be written to .*No space left.*free some disk"):
        store.write(manifest(20), spooled())
    monkeypatch.undo()
    assert sorted(store.folder.rglob("*")) == before
    assert store.latest()[1].read_bytes() == b"older"


def test_a_place_that_cannot_be_written_is_said_so(tmp_path, spooled):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Exhausted, match="cannot be written"):
        CheckpointStore(tmp_path / "file" / "checkpoints").write(manifest(1), spooled())


def test_what_a_crash_left_is_passed_over_and_cleared(store, spooled):
    store.write(manifest(10), spooled())
    half = store.folder / "step-000000020.partial"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert store.latest()[0].step == 10
    store.write(manifest(20), spooled())
    assert not half.exists()
    assert store.latest()[0].step == 20


def test_a_crash_while_one_takes_the_place_of_another_loses_neither(store, spooled):
    folder = store.write(manifest(20), spooled(b"first"))
    folder.rename(folder.with_suffix(".replaced"))
    assert store.latest()[1].read_bytes() == b"first"


def test_a_disk_that_fails_while_one_takes_the_place_of_another_leaves_the_first(store, spooled, monkeypatch):
    store.write(manifest(20), spooled(b"first"))
    rename = type(store.folder).rename

    def failing(path, target):
        if path.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(type(store.folder), "rename", failing)
    with pytest.raises(Exhausted, match="Input/output error"):
        store.write(manifest(20), spooled(b"second"))
    assert store.latest()[1].read_bytes() == b"first"
    assert [p.name for p in store.folder.iterdir()] == ["step-000000020"]


def test_one_of_steps_that_the_run_went_back_over_is_passed_over(store, spooled):
    store.folder.mkdir(parents=True)
    journal = Journal(store.folder.parent / NAME)
    for step in (10, 20, 30):
        store.write(manifest(step, journal_position=journal.position), spooled())
        journal.append(trainer_pb2.JournalEntry(step=step, decision=trainer_pb2.DecisionReply(sequence=step)))
    journal.rolled_back(trainer_pb2.AttachRequest(rollback={"step": 38, "restored_step": 20}).rollback)
    journal.close()
    assert store.latest()[0].step == 20
    assert store.warnings[0].startswith("the run went back to before checkpoint")
    store.write(manifest(30, journal_position=4), spooled())
    assert store.latest()[0].step == 30  # that one is of the new course


def test_the_digests_are_those_of_the_files(store, spooled):
    folder = store.write(manifest(10), spooled())
    assert read_checkpoint(folder).tensors.digest == checkpoint._digest(folder / "tensors.safetensors")
