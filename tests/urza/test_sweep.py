"""Sweeping: orphans go by age, what a kernel needs stays, and neither race can lose a file."""

import asyncio
import os
from pathlib import Path

import pytest

from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Conflict, NotFound, Unavailable
from esper.urza import transfer
from esper.urza.blobs import key_of
from esper.urza.events import OutboxEvent
from esper.urza.library import CentralLibrary
from esper.urza.sweep import Swept, keep_swept

from .fakes import Clock, add_blueprint, add_kernel, artifact, files_of, graph, open_library, sha256

HOUR_S = 3600.0


def age(tmp_path: Path, data: bytes, seconds: float, now_ns: int) -> Path:
    """Put a blob there as if `seconds` ago."""
    path = tmp_path / "blobs" / key_of(sha256(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)
    then_ns = now_ns - int(seconds * 1e9)
    os.utime(path, ns=(then_ns, then_ns))
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def library(tmp_path: Path, clock: Clock):
    made = await open_library(tmp_path, clock=clock)
    yield made
    await made.close()


async def test_old_orphans_go_and_everything_else_stays(library: CentralLibrary, tmp_path: Path, clock: Clock) -> None:
    artifact_id = await add_kernel(library)
    for data in files_of().values():
        age(tmp_path, data, 5 * HOUR_S, clock.now_ns)
    old = age(tmp_path, b"old orphan", 2 * HOUR_S, clock.now_ns)
    young = age(tmp_path, b"young orphan", 0.5 * HOUR_S, clock.now_ns)
    swept = await library.sweep(HOUR_S)
    assert swept == Swept(blobs=1, partial_blobs=0, requests=0, events=0)
    assert (old.exists(), young.exists()) == (False, True)
    _, files = await library.download_kernel(pb.DownloadKernelRequest(artifact_id=artifact_id))
    assert files == files_of()


async def test_many_orphans_go_in_batches(library: CentralLibrary, tmp_path: Path, clock: Clock) -> None:
    for number in range(230):
        age(tmp_path, f"orphan {number}".encode(), 2 * HOUR_S, clock.now_ns)
    assert (await library.sweep(HOUR_S)).blobs == 230
    assert (await library.sweep(HOUR_S)).blobs == 0


async def test_an_upload_renews_an_orphans_age(library: CentralLibrary, tmp_path: Path, clock: Clock) -> None:
    path = age(tmp_path, files_of()["weights.safetensors"], 0, now_ns=1)
    await add_kernel(library)
    assert path.stat().st_mtime_ns > 1


async def test_an_upload_whose_blob_was_swept_under_it_is_refused_and_a_retry_works(
    library: CentralLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = pb.KernelManifest(artifact=artifact(await add_blueprint(library)))
    store_files = transfer.intake.store_files

    async def then_swept(*args: object) -> None:
        await store_files(*args)
        (tmp_path / "blobs" / key_of(sha256(files_of()["graph.json"]))).unlink()

    with monkeypatch.context() as patch:
        patch.setattr(transfer.intake, "store_files", then_swept)
        with pytest.raises(Unavailable, match="swept while its kernel was uploaded; send it again"):
            await library.create_kernel(manifest, files_of())
    with pytest.raises(NotFound):
        await library.get_kernel(pb.GetKernelRequest(artifact_id=manifest.artifact.artifact_id))
    assert not (await library.create_kernel(manifest, files_of())).existed


async def test_requests_and_published_events_are_forgotten_by_age(library: CentralLibrary, clock: Clock) -> None:
    request = pb.CreateBlueprintRequest(request_id="r", graph=graph(), title="t", author="a")
    await library.create_blueprint(request)
    await add_kernel(library)
    clock.now_ns += int(2 * HOUR_S * 1e9)
    assert await library.sweep(HOUR_S) == Swept(blobs=0, partial_blobs=0, requests=1, events=0)
    request.title = "another request under the old id"
    assert (await library.create_blueprint(request)).existed

    async def publish(event: OutboxEvent) -> None:
        pass

    assert await library.drain(publish) == 1
    assert (await library.sweep(HOUR_S)).events == 1
    with pytest.raises(Conflict):
        request.title = "a third"
        await library.create_blueprint(request)


async def test_it_is_swept_again_and_again_and_an_error_is_logged_and_ends_nothing(caplog) -> None:
    ages: list[float] = []
    enough = asyncio.Event()

    async def sweep(age_s: float) -> Swept:
        ages.append(age_s)
        if len(ages) == 2:
            raise OSError("the disk is gone")
        if len(ages) == 4:
            enough.set()
        return Swept(1, 0, 0, 0)

    task = asyncio.create_task(keep_swept(sweep, 0.0, 0.001, HOUR_S))
    await enough.wait()
    task.cancel()
    assert ages == [HOUR_S] * 4
    (failed,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert failed.getMessage() == "the library was not swept: the disk is gone"


async def test_the_first_sweep_has_a_wait_of_its_own() -> None:
    swept = asyncio.Event()

    async def sweep(age_s: float) -> Swept:
        assert not swept.is_set()
        swept.set()
        return Swept(0, 0, 0, 0)

    task = asyncio.create_task(keep_swept(sweep, 0.0, HOUR_S, HOUR_S))
    await swept.wait()
    await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
