"""What a crash leaves: between blob and row nothing visible, after an acknowledgement everything."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Exhausted, NotFound
from esper.urza.events import OutboxEvent
from esper.urza.library import CentralLibrary
from esper.urza.writer import Writer

from .fakes import add_blueprint, artifact, files_of, open_library

WRITER = Path(__file__).with_name("crash_writer.py")


class PowerCut(Exception):
    """The process is gone from here on."""


@pytest.mark.parametrize("step", ["add_kernel", "record_change", "remember"])
async def test_a_crash_between_blob_and_row_leaves_nothing_and_a_retry_works(
    library: CentralLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    manifest = pb.KernelManifest(artifact=artifact(await add_blueprint(library)), request_id="r")

    async def cut(self: Writer, *args: object, **fields: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(Writer, step, cut)
        with pytest.raises(PowerCut):
            await library.create_kernel(manifest, files_of())
    assert any((tmp_path / "blobs" / "sha256").rglob("*")), "the blobs were stored first"
    with pytest.raises(NotFound):
        await library.get_kernel(pb.GetKernelRequest(artifact_id=manifest.artifact.artifact_id))
    assert (await library.verify_ledger()).revision == 1
    reply = await library.create_kernel(manifest, files_of())
    assert (reply.existed, reply.header.revision) == (False, 2)


async def test_a_full_disk_in_mid_upload_leaves_nothing_and_a_retry_works(
    library: CentralLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = pb.KernelManifest(artifact=artifact(await add_blueprint(library)), request_id="r")
    whole = os.write

    def full(fd: int, data: bytes) -> int:
        if bytes(data[:7]) == b"weights":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(Exhausted, match=r"blobs/sha256/.*: no room for 2700 bytes"):
            await library.create_kernel(manifest, files_of())
    with pytest.raises(NotFound):
        await library.get_kernel(pb.GetKernelRequest(artifact_id=manifest.artifact.artifact_id))
    assert list((tmp_path / "blobs" / "partial").iterdir()) == []
    assert not (await library.create_kernel(manifest, files_of())).existed


def acknowledged(folder: Path, first: int, count: int) -> set[tuple[str, str]]:
    """What a writer had acknowledged when it was killed, at `count` writes or shortly after."""
    command = [sys.executable, str(WRITER), str(folder), str(first)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert writer.stdout is not None
    lines = writer.stdout
    assert lines.readline() == "open\n"
    got = {_pair(lines.readline()) for _ in range(count)}
    os.kill(writer.pid, signal.SIGKILL)
    got |= {_pair(line) for line in _complete(lines)}
    lines.close()
    assert writer.wait() == -signal.SIGKILL
    return got


def _complete(lines: Iterator[str]) -> list[str]:
    return [line for line in lines if line.endswith("\n")]


def _pair(line: str) -> tuple[str, str]:
    thing, _, name = line.strip().partition(" ")
    return thing, name


async def test_a_writer_killed_in_mid_load_loses_no_acknowledged_write(tmp_path: Path) -> None:
    acked: set[tuple[str, str]] = set()
    for attempt in range(3):
        acked |= acknowledged(tmp_path, attempt * 1000, count=25 + 7 * attempt)
    library = await open_library(tmp_path)
    for thing, name in acked:
        if thing == "blueprint":
            await library.get_blueprint(pb.GetBlueprintRequest(blueprint_id=name))
        else:
            _, files = await library.download_kernel(pb.DownloadKernelRequest(artifact_id=name))
            assert set(files) == set(files_of())
    await library.verify_ledger()
    events: list[OutboxEvent] = []

    async def publish(event: OutboxEvent) -> None:
        events.append(event)

    await library.drain(publish)
    kernels = {name for thing, name in acked if thing == "kernel"}
    payloads = b"".join(event.event.payload for event in events)
    assert all(name.encode() in payloads for name in kernels)
    await library.close()
