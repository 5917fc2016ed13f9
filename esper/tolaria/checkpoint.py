"""Checkpoints on disk: atomic, checksummed, the latest few kept, the newest sound one found again.

A checkpoint is a folder `step-<step>` with `manifest.json`, `tensors.safetensors` and the
digests of both in `SHA256SUMS`, which `sha256sum -c` reads too. It is written under another
name and then renamed, so a folder of this name is whole; what differs from its digests is
not a checkpoint any more.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from google.protobuf import json_format

from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import Corrupt, Exhausted, NotFound
from esper.tolaria.journal import NAME, undone

VERSION = 1
_MANIFEST, _TENSORS, _SUMS = "manifest.json", "tensors.safetensors", "SHA256SUMS"


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int = 5, warn: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self.keep = keep
        self.warn = warn

    def write(self, manifest: trainer_pb2.CheckpointManifest, tensors: Path) -> Path:
        """Copy a snapshot file in, write the manifest beside it, sync both; drop the oldest over `keep`.

        Checkpoints of later steps are dropped too: the run was rolled back, and they are of
        what was undone. Raises NotFound where the snapshot file is gone, Exhausted where the
        disk is full; no half-written checkpoint is left.
        """
        if not tensors.exists():
            raise NotFound(
                f"checkpoint of step {manifest.step} is not written: its tensors {tensors} are gone from the spool"
            )
        target = self.folder / f"step-{manifest.step:09d}"
        partial, replaced = target.with_suffix(".partial"), target.with_suffix(".replaced")
        try:
            _remove(partial)
            partial.mkdir(parents=True)
            self._fill(partial, target, manifest, tensors)
            _remove(replaced)
            if target.exists():
                target.rename(replaced)
            partial.rename(target)
            _sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._put_back()
            raise Exhausted(
                f"checkpoint of step {manifest.step} cannot be written to {self.folder}: {error}; free some disk space"
            ) from error
        undone = [folder for folder in self.folders() if folder.name > target.name]
        for old in [replaced, *undone, *self.folders()[len(undone) + self.keep :]]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def folders(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        return sorted((p for p in self.folder.glob("step-*") if not p.suffix), reverse=True)

    def latest(self) -> tuple[trainer_pb2.CheckpointManifest, Path]:
        """The newest sound checkpoint: its manifest and its tensors' file.

        One that is damaged is passed over, and so is one of steps that the run went back over later, by the
        journal beside the checkpoints; `warn` says so. Raises NotFound where there is none.
        """
        self._put_back()
        for folder in self.folders():
            try:
                manifest = read_checkpoint(folder)
            except Corrupt as error:
                self.warn(f"{error}; trying the next older checkpoint")
                continue
            if not undone(self.folder.parent / NAME, manifest.journal_position, manifest.step):
                return manifest, folder / _TENSORS
            self.warn(f"the run went back to before checkpoint {folder}; trying the next older one")
        raise NotFound(f"no sound checkpoint in {self.folder}; start the run anew")

    def _put_back(self) -> None:
        """A checkpoint that was to be replaced when the writing ended goes back to its place."""
        for replaced in self.folder.glob("step-*.replaced"):
            if not replaced.with_suffix("").exists():
                replaced.rename(replaced.with_suffix(""))

    @staticmethod
    def _fill(partial: Path, target: Path, manifest: trainer_pb2.CheckpointManifest, tensors: Path) -> None:
        digest = _copy_synced(tensors, partial / _TENSORS)
        manifest.tensors.path = str(target / _TENSORS)
        manifest.tensors.digest = digest
        manifest.tensors.size_bytes = (partial / _TENSORS).stat().st_size
        text = json_format.MessageToJson(manifest).encode()
        _write_synced(partial / _MANIFEST, text)
        sums = f"{hashlib.sha256(text).hexdigest()}  {_MANIFEST}\n{digest}  {_TENSORS}\n"
        _write_synced(partial / _SUMS, sums.encode())
        _sync_folder(partial)


def read_checkpoint(folder: Path) -> trainer_pb2.CheckpointManifest:
    """Read and verify one checkpoint. Raises Corrupt naming the file and what is wrong with it."""
    try:
        lines = [line.split("  ") for line in (folder / _SUMS).read_text().splitlines()]
        sums = {name: digest for digest, name in lines}
        for name in (_MANIFEST, _TENSORS):
            if _digest(folder / name) != sums.get(name):
                raise Corrupt(f"{folder / name} is not what was written (its sha256 is not the one in {_SUMS})")
        text = (folder / _MANIFEST).read_bytes()
        manifest = json_format.Parse(text, trainer_pb2.CheckpointManifest())
    except (OSError, ValueError, json_format.ParseError) as error:
        raise Corrupt(f"checkpoint {folder} cannot be read: {error}") from error
    if manifest.version != VERSION:
        raise Corrupt(f"{folder / _MANIFEST} is of version {manifest.version}, this release reads {VERSION}")
    return manifest


def _remove(folder: Path) -> None:
    """Delete a folder of an earlier attempt."""
    if folder.exists():
        shutil.rmtree(folder)


def _copy_synced(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while part := reading.read(1 << 20):
            digest.update(part)
            writing.write(part)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
