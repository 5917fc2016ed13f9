"""Checkpoints on disk: atomic, checksummed, incremental, the latest few kept, the newest sound one found again.

A checkpoint is a folder `step-<step>` with `manifest.json`, `tensors.safetensors`, a file for each
large tensor, and the digests of all in `SHA256SUMS`, which `sha256sum -c` reads too. It is written
under another name and then renamed, so a folder of this name is whole; what differs from its
digests is not a checkpoint any more.

A large tensor that has not changed is not written again: its file is a hard link to an older
checkpoint's, so deleting that one takes nothing from this one. Two checkpoints in a row share
no file, or one damaged file would take both, and in the end all: a tensor that stays as it is
is written twice and from then on linked, to the checkpoint before the last.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from google.protobuf import json_format

from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import Corrupt, EsperError, Exhausted, NotFound, PreconditionFailed
from esper.tolaria.journal import NAME, undone
from esper.tolaria.tensor_files import Cut, cut, file_name

VERSION = 3
_MANIFEST, _TENSORS, _SUMS = "manifest.json", "tensors.safetensors", "SHA256SUMS"
_PARTIAL, _REPLACED = ".partial", ".replaced"
log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int = 5, warn: Callable[[str], None] = log.warning) -> None:
        self.folder = folder
        self.keep = keep
        self.warn = warn

    def write(self, manifest: trainer_pb2.CheckpointManifest, tensors: Path) -> Path:
        """Write what changed of a snapshot file, and the manifest, filled in; sync all; drop the oldest over `keep`.

        Checkpoints of later steps are dropped too: the run was rolled back, and they are of
        what was undone. Raises NotFound where the snapshot file is gone, Corrupt where it is none,
        PreconditionFailed for a manifest of another version, Exhausted where the disk is full; no
        half-written checkpoint is left.
        """
        if not tensors.exists():
            raise NotFound(
                f"checkpoint of step {manifest.step} is not written: its tensors {tensors} are gone from the spool"
            )
        if manifest.version != VERSION:
            raise PreconditionFailed(
                f"checkpoint of step {manifest.step} is not written: it is of version {manifest.version} and this "
                f"release writes version {VERSION}; run trainer and runtime from one release"
            )
        small, large = cut(tensors)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                return self._write(manifest, small, large)
        except OSError as error:
            raise Exhausted(
                f"checkpoint of step {manifest.step} cannot be written to {self.folder}: {error}; free some disk space"
            ) from error

    def write_spooled(self, manifest: trainer_pb2.CheckpointManifest) -> trainer_pb2.Note | None:
        """Write the checkpoint whose tensors the manifest names. A failure is a note: training goes on without it."""
        try:
            self.write(manifest, Path(manifest.tensors.path))
        except (EsperError, OSError) as error:
            return trainer_pb2.Note(level="error", source="tolaria", text=f"checkpoint not written: {error}")
        return None

    def folders(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        return sorted((p for p in self.folder.glob("step-*") if not p.suffix), reverse=True)

    def latest(self) -> tuple[trainer_pb2.CheckpointManifest, Path]:
        """The newest sound checkpoint: its manifest and its tensors' file, beside which the large ones are.

        One that is damaged is passed over, and so is one of steps that the run went back over later, by the
        journal beside the checkpoints; `warn` says so. Raises NotFound where there is none,
        PreconditionFailed where the newest is of another version.
        """
        if self.folder.is_dir():
            with self._locked():
                self._put_back()
        damaged: list[Corrupt] = []
        for folder in self.folders():
            try:
                manifest = read_checkpoint(folder)
            except Corrupt as error:
                damaged.append(error)
                self.warn(f"{error}; trying the next older checkpoint")
                continue
            if not undone(self.folder.parent / NAME, manifest.journal_position, manifest.step):
                return manifest, folder / _TENSORS
            self.warn(f"the run went back to before checkpoint {folder}; trying the next older one")
        why = f" ({damaged[0]})" if damaged else ""
        raise NotFound(f"no sound checkpoint in {self.folder}{why}; start the run anew")

    def _write(self, manifest: trainer_pb2.CheckpointManifest, small: Cut, large: Sequence[Cut]) -> Path:
        target = self.folder / f"step-{manifest.step:09d}"
        partial, replaced = target.with_suffix(_PARTIAL), target.with_suffix(_REPLACED)
        self._sweep()
        older = [folder for folder in self.folders() if folder.name < target.name]
        try:
            partial.mkdir()
            _fill(partial, target, older, manifest, small, large)
            if target.exists():
                target.rename(replaced)
            partial.rename(target)
            _sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            self._put_back()
            raise
        later = [folder for folder in self.folders() if folder.name > target.name]
        for old in [*later, *older[self.keep - 1 :]]:
            old.rename(old.with_suffix(_PARTIAL))  # at once, or it could be found half deleted
        self._sweep()
        return target

    def _sweep(self) -> None:
        """Delete what writing left that was broken off, and what is to go."""
        self._put_back()
        for left in [*self.folder.glob(f"step-*{_PARTIAL}"), *self.folder.glob(f"step-*{_REPLACED}")]:
            shutil.rmtree(left, ignore_errors=True)

    def _put_back(self) -> None:
        """A checkpoint that was to be replaced when the writing ended goes back to its place."""
        for replaced in self.folder.glob(f"step-*{_REPLACED}"):
            if not replaced.with_suffix("").exists():
                replaced.rename(replaced.with_suffix(""))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, in whatever process: a line that is lost and opened again asks for the same twice."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def read_checkpoint(folder: Path) -> trainer_pb2.CheckpointManifest:
    """Read one checkpoint's manifest and verify all its files.

    Raises Corrupt naming the file and what is wrong with it, PreconditionFailed for another version.
    """
    try:
        lines = [line.split("  ") for line in (folder / _SUMS).read_text().splitlines()]
        sums = {name: digest for digest, name in lines}
        _check(folder / _MANIFEST, sums.get(_MANIFEST, ""))
        text = (folder / _MANIFEST).read_bytes()
        _check_version(folder / _MANIFEST, json.loads(text).get("version"))
        manifest = json_format.Parse(text, trainer_pb2.CheckpointManifest())
        files = {_TENSORS: manifest.tensors.digest} | {file_name(file.digest): file.digest for file in manifest.files}
        if sums != files | {_MANIFEST: sums[_MANIFEST]}:
            raise Corrupt(f"{folder / _SUMS} is not what was written (its digests are not those in {_MANIFEST})")
        for name, digest in files.items():
            _check(folder / name, digest)
    except (OSError, ValueError, AttributeError, json_format.ParseError) as error:
        raise Corrupt(f"checkpoint {folder} cannot be read: {error}") from error
    return manifest


def _fill(
    partial: Path,
    target: Path,
    older: Sequence[Path],
    manifest: trainer_pb2.CheckpointManifest,
    small: Cut,
    large: Sequence[Cut],
) -> None:
    """Write all files of a checkpoint that will be `target`; fill in the manifest's part about them."""
    del manifest.files[:]
    for piece in large:
        digest = piece.digest()
        shared = _link(piece, file_name(digest), partial, older)
        if not shared:
            _write_synced(partial / file_name(digest), piece.chunks())
        size = (partial / file_name(digest)).stat().st_size
        manifest.files.add(digest=digest, size_bytes=size, shared=shared)
    digest = small.digest()
    _write_synced(partial / _TENSORS, small.chunks())
    manifest.tensors.path = str(target / _TENSORS)
    manifest.tensors.digest = digest
    manifest.tensors.size_bytes = (partial / _TENSORS).stat().st_size
    text = json_format.MessageToJson(manifest).encode()
    _write_synced(partial / _MANIFEST, [text])
    sums = [(hashlib.sha256(text).hexdigest(), _MANIFEST), (digest, _TENSORS)]
    sums += [(file.digest, file_name(file.digest)) for file in manifest.files]
    _write_synced(partial / _SUMS, ["".join(f"{digest}  {name}\n" for digest, name in sums).encode()])
    _sync_folder(partial)


def _link(piece: Cut, name: str, partial: Path, older: Sequence[Path]) -> bool:
    """Take over an older checkpoint's file, unless it is the very file that the newest has.

    It is compared byte for byte first, so that damage is not handed on. False where there is none, or
    where the file system has no hard links: then it is written.
    """
    newest = _inode(older[0] / name) if older else None
    for folder in older:
        found = _inode(folder / name)
        if found is None or found == newest:
            continue
        with contextlib.suppress(OSError):
            if piece.is_in(folder / name):
                os.link(folder / name, partial / name)
                return True
    return False


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _check(path: Path, digest: str) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise Corrupt(f"{path} is not what was written (its sha256 is another one)")


def _check_version(path: Path, version: object) -> None:
    if version != VERSION:
        raise PreconditionFailed(
            f"{path} is of version {version} and this release reads version {VERSION}; go on with the release of "
            "Esper that wrote it, or start the run anew"
        )


def _write_synced(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
