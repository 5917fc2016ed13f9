"""How fast a kernel is fetched: ready in memory, verified from disk, from the library over loopback.

The kernels are made by the real forge and promoted by the real evaluator, at several sizes.
`memory_us`: one fetch of a ready kernel. `disk_ms_per_256kb`: read and verified, which costs a
small kernel as much as one of 256 KB, so less than that counts as 256 KB. `library_ms_per_mb`:
downloaded from the serving process over gRPC and verified, per MB, of kernels of a MB and more;
`library_ms` of smaller ones. `build_ms` and `warm_up_ms`: what follows before a kernel may run.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench.flow.services import Runtime, runtime
from bench.flow.stock import promoted_kernel
from bench.harness import BASELINE, CONTROL, Comparison, Effort, compare
from bench.registry import Options
from bench.row import Row, Target, make_row
from esper.api.urza.v1 import library_pb2
from esper.artifact.bundle import Artifact, verify
from esper.artifact.keys import TrustRoots
from esper.blueprint.interface import Interface, Kind
from esper.kasmina.cache import KernelCache
from esper.kasmina.loader import KernelLoader
from esper.rpc.client import open_channel
from esper.runtime.clients import LibraryClient
from esper.runtime.trust import read_trust

NAME = "load"
MEMORY_US, DISK_MS_PER_256KB, LIBRARY_MS_PER_MB = Target(10.0), Target(1.0), Target(50.0)
KB, MB = 1 << 10, 1 << 20
# case: (blueprint, interface); the two larger ones have about 0.5 and 8 million parameters
KERNELS = {
    "low_rank, 64 channels": ("low_rank", Interface(Kind.VECTOR, 64)),
    "wide_mlp, 256 channels": ("wide_mlp", Interface(Kind.VECTOR, 256)),
    "wide_mlp, 1024 channels": ("wide_mlp", Interface(Kind.VECTOR, 1024)),
}
EFFORT = Effort(rounds=3, turns=20, block_s=0.005)
BUILDS = 7
PROMOTION_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A promoted kernel, and whose signatures count."""

    case: str
    artifact: Artifact
    interface: Interface
    roots: TrustRoots

    @property
    def size_bytes(self) -> int:
        return self.artifact.size_bytes


def rows(options: Options) -> Iterator[Row]:
    cases = list(KERNELS)[:1] if options.quick else list(KERNELS)
    effort = options.effort(EFFORT)
    with runtime() as services, asyncio.Runner() as runner, tempfile.TemporaryDirectory() as folder:
        channel = runner.run(_open(services))
        try:
            for case in cases:
                sample = runner.run(made(case, services, channel))
                services.wait_until_quiet(PROMOTION_LIMIT_S)
                yield from local_rows(sample, Path(folder), effort)
                yield library_row(sample, lambda sample=sample: runner.run(fetched(sample, channel)), effort)  # type: ignore[misc]
        finally:
            runner.run(channel.close(None))


async def _open(services: Runtime) -> grpc.aio.Channel:
    return open_channel(services.contact.address, token=services.contact.token())


async def made(case: str, services: Runtime, channel: grpc.aio.Channel) -> Sample:
    """Have a case's kernel made, and fetch it."""
    title, interface = KERNELS[case]
    artifact_id = await promoted_kernel(channel, title, interface, PROMOTION_LIMIT_S)
    request = library_pb2.DownloadKernelRequest(artifact_id=artifact_id)
    manifest, files = await LibraryClient(lambda: channel).download_kernel(request)
    artifact = Artifact(manifest, files)
    return Sample(
        f"{case}, {artifact.size_bytes / KB:.0f} KB", artifact, interface, read_trust(services.home.trust_file)
    )


async def fetched(sample: Sample, channel: grpc.aio.Channel) -> None:
    """Download a kernel and verify it."""
    request = library_pb2.DownloadKernelRequest(artifact_id=sample.artifact.artifact_id)
    manifest, files = await LibraryClient(lambda: channel).download_kernel(request)
    verify(Artifact(manifest, files), sample.roots)


def local_rows(sample: Sample, folder: Path, effort: Effort) -> Iterator[Row]:
    """Fetches that stay in this process, then building and warming up."""
    artifact_id = sample.artifact.artifact_id

    def no_library(_: str) -> Artifact:
        raise AssertionError("the kernel is on disk")

    cache = KernelCache(folder / artifact_id, sample.roots, no_library)
    cache.take(sample.artifact)
    loaders = [KernelLoader(KernelCache(folder / artifact_id, sample.roots, no_library)) for _ in range(BUILDS)]
    parts = [loader.load(artifact_id, sample.interface).timings for loader in loaders]
    ready = loaders[0]

    found = twice(lambda: ready.load(artifact_id, sample.interface), effort)
    yield _row(sample, "memory_us", found.median_s() * 1e6, "us", found, MEMORY_US)
    found = twice(lambda: cache.obtain(artifact_id), effort)
    pieces = max(1.0, sample.size_bytes / (256 * KB))
    yield _row(sample, "disk_ms_per_256kb", found.median_s() * 1e3 / pieces, "ms/256KB", found, DISK_MS_PER_256KB)
    build, warm_up = ([getattr(part, name) for part in parts] for name in ("build_ms", "warm_up_ms"))
    yield make_row(NAME, sample.case, "build_ms", statistics.median(build), "ms")
    yield make_row(NAME, sample.case, "warm_up_ms", statistics.median(warm_up), "ms")


def library_row(sample: Sample, fetch: Callable[[], None], effort: Effort) -> Row:
    """A fetch over loopback."""
    found = twice(fetch, effort)
    if sample.size_bytes < MB:
        return _row(sample, "library_ms", found.median_s() * 1e3, "ms", found, None)
    per_mb = found.median_s() * 1e3 / (sample.size_bytes / MB)
    return _row(sample, "library_ms_per_mb", per_mb, "ms/MB", found, LIBRARY_MS_PER_MB)


def twice(call: Callable[[], object], effort: Effort) -> Comparison:
    """A call against itself: its time, and the noise."""
    return compare(lambda: {BASELINE: call, CONTROL: call}, effort)


def _row(sample: Sample, metric: str, value: float, unit: str, found: Comparison, target: Target | None) -> Row:
    return make_row(NAME, sample.case, metric, value, unit, aa=found.interval(), target=target)


def test_load(benchmark, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with runtime() as services, asyncio.Runner() as runner:
        channel = runner.run(_open(services))
        sample = runner.run(made(next(iter(KERNELS)), services, channel))
        runner.run(channel.close(None))
    cache = KernelCache(tmp_path, sample.roots, lambda _: sample.artifact)
    cache.take(sample.artifact)
    benchmark(lambda: cache.obtain(sample.artifact.artifact_id))
