"""Checkpoints of a few tensors, written and read back; files damaged; a writer that dies."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from esper.api.tolaria.v1 import trainer_pb2
from esper.tolaria.checkpoint import VERSION, CheckpointStore, read_checkpoint
from esper.tolaria.snapshot import Snapshot, load
from esper.tolaria.tensor_files import OWN_FILE_BYTES, file_name, files_of

LARGE = OWN_FILE_BYTES // 4 + 100  # elements of a tensor with a file of its own


def manifest(step: int, **changes: object) -> trainer_pb2.CheckpointManifest:
    return trainer_pb2.CheckpointManifest(**({"version": VERSION, "run_id": "r", "step": step} | changes))


def filled(value: float) -> dict[str, Tensor]:
    """A small and a large tensor of one value."""
    return {"model.bias": torch.full((3,), value), "model.weight": torch.full((LARGE,), value)}


def spool(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """The snapshot file that a training process leaves."""
    path = folder / "spooled.safetensors"
    Snapshot(0, dict(tensors), {}).save(path)
    return path


def write(store: CheckpointStore, step: int, tensors: Mapping[str, Tensor], **changes: object) -> Path:
    with tempfile.TemporaryDirectory() as name:
        return store.write(manifest(step, **changes), spool(Path(name), tensors))


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """What a checkpoint holds, verified."""
    *others, tensors = files_of(read_checkpoint(folder), folder / "tensors.safetensors")
    return load(tensors, others).tensors


def value_of(store: CheckpointStore) -> float:
    """Of the newest sound checkpoint, whose tensors are `filled`."""
    held = tensors_in(store.latest()[1].parent)
    assert same(held, filled(float(held["model.bias"][0])))
    return float(held["model.bias"][0])


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(_bytes(a[n]), _bytes(b[n])) for n in a
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def large_files(folder: Path) -> list[Path]:
    return [folder / file_name(file.digest) for file in read_checkpoint(folder).files]


def inodes(folder: Path) -> dict[int, int]:
    """Files below a folder by inode, with their size in bytes: what is linked twice is here once."""
    return {p.stat().st_ino: p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def flip(path: Path, at: int = -1) -> None:
    """One bit of a file, in place: whoever links it has it too."""
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def dies_at(number: int, store: CheckpointStore, step: int, spooled: Path) -> bool:
    """Write a checkpoint in a process that ends as by kill -9 before its `number`-th call to the disk. Did it die?"""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    code = 1
    try:
        left = [number]

        def counted(call):
            def counting(*arguments, **options):
                left[0] -= 1
                if not left[0]:
                    os._exit(9)
                return call(*arguments, **options)

            return counting

        for name in ("fsync", "link", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        for name in ("mkdir", "rename"):
            setattr(Path, name, counted(getattr(Path, name)))
        store.write(manifest(step), spooled)
        code = 0
    finally:
        os._exit(code)
