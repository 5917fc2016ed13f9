"""Incremental checkpoints: what did not change is not written again, and no damage takes two in a row."""

import errno
import itertools
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from esper.errors import Exhausted
from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import CheckpointStore, read_checkpoint
from esper.tolaria.snapshot import Snapshot, load
from esper.tolaria.tensor_files import OWN_FILE_BYTES, cut, joined, split
from tests.tolaria.checkpoints import (
    LARGE,
    filled,
    flip,
    inodes,
    large_files,
    manifest,
    same,
    spool,
    tensors_in,
    value_of,
    write,
)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def run_state(step: int) -> dict[str, Tensor]:
    """Of a run that trains its head on a frozen backbone four times as large."""
    return {"model.backbone": torch.ones(4 * LARGE), "model.head": torch.full((LARGE,), float(step))}


def written_bytes(store, step, tensors):
    before = inodes(store.folder)
    write(store, step, tensors)
    return sum(size for inode, size in inodes(store.folder).items() if inode not in before)


def test_what_does_not_change_is_written_twice_and_then_never_again(store):
    written = [written_bytes(store, step, run_state(step)) for step in range(1, 10)]
    backbone, head = 4 * 4 * LARGE, 4 * LARGE
    assert all(backbone + head < size < backbone + head + 5000 for size in written[:2])
    assert all(head < size < head + 5000 for size in written[2:])
    on_disk = sum(inodes(store.folder).values())
    assert 2 * backbone + 5 * head < on_disk < 2 * backbone + 5 * (head + 5000)
    assert [file.shared for file in read_checkpoint(store.folders()[0]).files] == [True, False]


def test_everything_unchanged_costs_a_few_kilobytes(store):
    for step in (1, 2):
        write(store, step, filled(1.0))
    assert written_bytes(store, 3, filled(1.0)) < 5000


def test_deleting_the_older_ones_takes_nothing_from_the_newest(store):
    for step in range(1, 5):
        write(store, step, run_state(step))
    for folder in store.folders()[1:]:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert same(tensors_in(store.folders()[0]), run_state(4))


@dataclass
class History:
    """A store, and what should be in it."""

    store: CheckpointStore
    expected: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # by step

    def write(self, step: int, tensors: dict[str, Tensor]) -> None:
        older = [self.expected[s] for s in sorted(self.expected, reverse=True) if s < step]
        folder = write(self.store, step, tensors)
        kept = sorted((s for s in self.expected if s < step), reverse=True)[: self.store.keep - 1]
        self.expected = {s: self.expected[s] for s in kept} | {step: dict(tensors)}
        shared = {name for path in self._shared(folder) for name in load_file(path)}
        for name in (name for name in tensors if name.startswith("large")):
            had = [name in held and same({"": held[name]}, {"": tensors[name]}) for held in older[1:]]
            assert name in shared or not any(had[:1])
            assert name not in shared or any(had)

    @staticmethod
    def _shared(folder: Path) -> list[Path]:
        files = read_checkpoint(folder).files
        return [path for path, file in zip(large_files(folder), files, strict=True) if file.shared]

    def check(self) -> None:
        folders = self.store.folders()
        assert [int(f.name.removeprefix("step-")) for f in folders] == sorted(self.expected, reverse=True)
        assert len(list(self.store.folder.iterdir())) == len(folders)
        for folder in folders:
            assert same(tensors_in(folder), self.expected[int(folder.name.removeprefix("step-"))])
        for one, next_older in itertools.pairwise(folders):
            assert not inodes(one).keys() & inodes(next_older).keys()


DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
_tensors = st.dictionaries(
    st.sampled_from(["large a", "large b", "large c", "small a", "small b"]),
    st.tuples(st.integers(0, 2), st.sampled_from(DTYPES)),
)
_moves = st.lists(st.tuples(st.sampled_from([1, 1, 1, 1, 0, -1, -3]), _tensors), min_size=1, max_size=14)


@settings(max_examples=25, deadline=None)
@given(_moves, st.integers(2, 5))
def test_whatever_changes_every_checkpoint_that_is_kept_reads_back_exactly(tmp_path_factory, moves, keep):
    """Steps forward, the same again, and back as after a rollback; tensors that change, come and go."""
    store = CheckpointStore(tmp_path_factory.mktemp("history") / "checkpoints", keep=keep)
    history, step, tensors = History(store), 10, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # hundreds of files
        for move, changed in moves:
            step = max(0, step + move)
            for name, (value, dtype) in changed.items():
                if name in tensors and value == 0:
                    del tensors[name]
                else:
                    elements = OWN_FILE_BYTES // dtype.itemsize if name.startswith("large") else 5
                    tensors[name] = torch.full((elements,), value).to(dtype)
            history.write(step, tensors)
            history.check()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize("shared", [True, False])
def test_damage_to_any_file_of_the_newest_leaves_the_next_older_sound(store, damage, shared):
    said = []
    store.warn = said.append
    for step in range(1, 7):
        write(store, step, run_state(step))
    newest = store.folders()[0]
    files = read_checkpoint(newest).files
    (path,) = (p for p, file in zip(large_files(newest), files, strict=True) if file.shared is shared)
    if damage == "flip":
        flip(path, 5000)
    elif damage == "cut":
        os.truncate(path, 5000)
    else:
        path.unlink()
    found, _ = store.latest()
    assert found.step == 5
    assert len(said) == 1
    assert "step-000000006" in said[0]
    assert path.name in said[0]
    write(store, 7, run_state(7))
    assert store.latest()[0].step == 7  # what is damaged is not handed on
    write(store, 8, run_state(8))
    assert store.latest()[0].step == 8


def test_a_file_of_the_right_name_and_wrong_content_is_not_taken_over(store):
    write(store, 1, filled(1.0))
    flip(large_files(store.folders()[0])[0])
    for step in (2, 3):
        write(store, step, filled(1.0))
    newest = store.folders()[0]
    assert [file.shared for file in read_checkpoint(newest).files] == [False]
    assert value_of(store) == 1.0


def test_two_in_a_row_share_nothing_even_where_one_between_them_was_deleted(store):
    for step in (1, 2, 3):
        write(store, step, filled(1.0))
    shutil.rmtree(store.folders()[1])  # 1 and 3 are of one file, and neighbours now
    write(store, 4, filled(1.0))
    newest, before = store.folders()[:2]
    assert not inodes(newest).keys() & inodes(before).keys()


def test_where_there_are_no_hard_links_everything_is_written(store, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for step in range(1, 5):
        write(store, step, filled(1.0))
    assert not any(file.shared for folder in store.folders() for file in read_checkpoint(folder).files)
    assert value_of(store) == 1.0


def test_a_disk_that_fills_up_while_a_large_tensor_is_written_leaves_the_older_ones(store, monkeypatch):
    for step in (1, 2, 3):
        write(store, step, run_state(step))
    before, kept = inodes(store.folder), store.folders()
    written = checkpoint._write_synced

    def full(path, chunks):
        if path.name == "tensors.safetensors":
            return written(path, chunks)
        path.write_bytes(next(iter(chunks)))  # a part of it
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_synced", full)
    with pytest.raises(Exhausted, match="No space left"):
        write(store, 4, run_state(4))
    assert (inodes(store.folder), store.folders()) == (before, kept)
    assert [same(tensors_in(folder), run_state(step)) for folder, step in zip(kept, (3, 2, 1), strict=True)]


# Cutting


def test_a_large_tensor_is_a_safetensors_file_of_its_own(store):
    tensors = {"model.w": torch.randn(200, 300), "model.b": torch.zeros(3), "model.none": torch.zeros(0, 4)}
    folder = write(store, 1, tensors)
    (path,) = large_files(folder)
    assert same(load_file(path), {"model.w": tensors["model.w"]})
    assert same(load_file(folder / "tensors.safetensors"), {n: t for n, t in tensors.items() if n != "model.w"})


def test_a_file_has_64_KiB_or_none_of_its_own(tmp_path):
    whole, less = torch.zeros(OWN_FILE_BYTES, dtype=torch.uint8), torch.zeros(OWN_FILE_BYTES - 1, dtype=torch.uint8)
    _, large = cut(spool(tmp_path, {"whole": whole, "less": less}))
    assert [list(json.loads(piece.header[8:])) for piece in large] == [["whole"]]


def test_a_run_without_large_tensors_has_one_file(store):
    folder = write(store, 1, {"model.b": torch.zeros(3)})
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "manifest.json", "tensors.safetensors"]


def test_a_run_of_large_tensors_only_has_its_metadata_still(tmp_path, store):
    Snapshot(7, {"model.w": torch.ones(LARGE)}, {}).save(tmp_path / "it.safetensors")
    folder = store.write(manifest(7), tmp_path / "it.safetensors")
    found = load(folder / "tensors.safetensors", large_files(folder))
    assert found.step == 7
    assert same(found.tensors, {"model.w": torch.ones(LARGE)})


def test_files_go_to_another_process_as_one_and_come_out_as_they_were(tmp_path, store):
    write(store, 1, run_state(1))
    found, tensors = store.latest()
    there = tmp_path / "there"
    there.mkdir()
    split(found, joined(found, tensors), there / "checkpoint.safetensors")
    files = {path.name: path.read_bytes() for path in tensors.parent.iterdir() if path.suffix == ".safetensors"}
    files["checkpoint.safetensors"] = files.pop("tensors.safetensors")
    assert {path.name: path.read_bytes() for path in there.iterdir()} == files
