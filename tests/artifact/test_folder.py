"""The on-disk form: whole or not there, and read as it is."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from esper.artifact import folder as folder_module
from esper.artifact.bundle import Artifact, verify
from esper.artifact.folder import read_folder, write_folder
from esper.errors import Corrupt, Exhausted, InvalidRequest, NotFound, Untrusted

from .samples import ROOTS, flipped, promoted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A written folder."""
    made = tmp_path / "kernels" / promoted().artifact_id
    assert write_folder(promoted(), made)
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read_back_and_verifies(path):
    assert read_folder(path) == promoted()
    verify(read_folder(path), ROOTS)
    assert names(path) == ["attestations.json", "body.json", *sorted(promoted().files)]
    assert (path / "body.json").read_bytes() == promoted().manifest.body
    assert [one["role"] for one in json.loads((path / "attestations.json").read_text())] == ["built", "promoted"]


def test_files_in_folders_of_their_own_are_written_and_read(tmp_path):
    deep = Artifact(promoted().manifest, {**promoted().files, "triton/fwd/a.cubin": b"\x00"})
    path = tmp_path / deep.artifact_id
    write_folder(deep, path)
    assert read_folder(path).files == deep.files


def test_a_folder_that_is_there_stays_and_nothing_is_left_beside_it(path):
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert not write_folder(promoted(), path)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors", "module.pt", "body.json"])
def test_a_flipped_bit_on_disk_is_noticed(path, name):
    file = path / name
    file.write_bytes(flipped(file.read_bytes(), 40))
    with pytest.raises(Corrupt):
        verify(read_folder(path), ROOTS)


def test_a_flipped_signature_on_disk_is_noticed(path):
    file = path / "attestations.json"
    listed = json.loads(file.read_text())
    listed[1]["signature"] = flipped(bytes.fromhex(listed[1]["signature"])).hex()
    file.write_text(json.dumps(listed))
    with pytest.raises(Untrusted, match='no "promoted" attestation'):
        verify(read_folder(path), ROOTS)


def test_a_folder_under_another_name_is_another_artifact(path):
    other = path.with_name("b" * 64)
    path.rename(other)
    with pytest.raises(Corrupt, match=r"artifact 'b+'"):
        verify(read_folder(other), ROOTS)
    with pytest.raises(InvalidRequest, match="must carry its id"):
        write_folder(promoted(), path.with_name("c" * 64))


@pytest.mark.parametrize("name", ["body.json", "attestations.json"])
def test_a_missing_record_is_corrupt(path, name):
    (path / name).unlink()
    with pytest.raises(Corrupt, match=f"{name} is missing"):
        read_folder(path)


def test_a_missing_or_extra_file_is_noticed(path):
    (path / "extra").write_bytes(b"x")
    with pytest.raises(Corrupt, match="'extra' is not in the body"):
        verify(read_folder(path), ROOTS)
    (path / "extra").unlink()
    (path / "module.pt").unlink()
    with pytest.raises(Corrupt, match=r"'module\.pt' is missing"):
        verify(read_folder(path), ROOTS)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[1]", '[{"role":"built"}]', "[" * 100_000, '[{"role":"built","key_id":1}]'),
        '[{"role":"king","key_id":"","statement":"","signature":""}]',
        '[{"role":"built","key_id":"","statement":"zz","signature":""}]',
    ],
)
def test_attestations_that_are_none_are_corrupt(path, text):
    (path / "attestations.json").write_text(text)
    if text == "{}":
        assert not read_folder(path).manifest.attestations
        return
    with pytest.raises(Corrupt, match="is not a list of attestations"):
        read_folder(path)


def test_links_and_pipes_are_no_files(path):
    secret = path.parent / "secret"
    secret.write_bytes(promoted().files["module.pt"])
    (path / "module.pt").unlink()
    (path / "module.pt").symlink_to(secret)
    with pytest.raises(Corrupt, match=r"module\.pt is no plain file"):
        read_folder(path)
    (path / "module.pt").unlink()
    os.mkfifo(path / "module.pt")
    with pytest.raises(Corrupt, match=r"module\.pt is no plain file"):
        read_folder(path)


def test_a_link_to_a_folder_is_no_file(path):
    (path / "triton").symlink_to(path.parent, target_is_directory=True)
    with pytest.raises(Corrupt, match="triton is no plain file"):
        read_folder(path)


def test_too_much_is_not_read(path, monkeypatch):
    monkeypatch.setattr(folder_module, "MAX_ARTIFACT_BYTES", 1000)
    with pytest.raises(Corrupt, match="over 1000 bytes"):
        read_folder(path)
    monkeypatch.undo()
    (path / "body.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(Corrupt, match=r"body\.json is missing, or has over 1048576 bytes"):
        read_folder(path)


def test_what_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="no artifact folder"):
        read_folder(tmp_path / ("a" * 64))


@pytest.mark.parametrize("name", ["../../escape", "/tmp/escape", "body.json", "a/../../escape"])
def test_a_file_name_that_leads_out_writes_nothing(tmp_path, name):
    hostile = replace(promoted(), files={**promoted().files, name: b"x"})
    with pytest.raises(InvalidRequest, match="file name"):
        write_folder(hostile, tmp_path / "kernels" / hostile.artifact_id)
    assert not (tmp_path / "escape").exists()
    assert not (tmp_path / "kernels").exists()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_module, "_write_file", full)
    with pytest.raises(Exhausted, match="No space left on device"):
        write_folder(promoted(), tmp_path / promoted().artifact_id)
    assert names(tmp_path) == []


def test_a_writer_that_dies_leaves_no_artifact(tmp_path, monkeypatch):
    """Between the last file and the folder's name: what is there cannot be taken for an artifact."""

    def dies(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "_sync", dies)
    with pytest.raises(KeyboardInterrupt):
        write_folder(promoted(), tmp_path / promoted().artifact_id)
    with pytest.raises(NotFound):
        read_folder(tmp_path / promoted().artifact_id)
