"""A library, a worker pool, a clock and ears, for tests of the forge and the evaluator."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.api.common.v1.resource_pb2 import PageReply, PageRequest, Target
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.attest import BUILT, PROMOTED, verify
from esper.artifact.body import read_body
from esper.artifact.keys import TrustRoots
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import write_graph, write_interface
from esper.blueprint.ir import Graph
from esper.errors import Conflict, NotFound, Unavailable
from esper.urza.statuses import BLUEPRINT, KERNEL

PENDING = pb.KERNEL_STATUS_PENDING_BENCHMARKING


class Library:
    """The forge's and the evaluator's part of the library, in memory, with its rules about statuses and signatures."""

    def __init__(self, roots: TrustRoots) -> None:
        self.roots = roots
        self.blueprints: dict[str, pb.Blueprint] = {}
        self.kernels: dict[str, pb.Kernel] = {}
        self.artifacts: dict[str, tuple[ArtifactManifest, dict[str, bytes]]] = {}
        self.reports: dict[str, Any] = {}
        self.history: list[tuple[str, str]] = []  # (what, new status)
        self.away = False

    def add(self, graph: Graph, title: str = "it") -> str:
        """Put a blueprint in; returns its id."""
        identity = blueprint_id(graph)
        self.blueprints[identity] = pb.Blueprint(
            blueprint_id=identity, graph=write_graph(graph), title=title, status=pb.BLUEPRINT_STATUS_UNVALIDATED
        )
        return identity

    def status(self, blueprint: str) -> str:
        return BLUEPRINT.name(self.blueprints[blueprint].status)

    def kernel_status(self, artifact: str) -> str:
        return KERNEL.name(self.kernels[artifact].status)

    async def get_blueprint(self, request: pb.GetBlueprintRequest) -> pb.GetBlueprintResponse:
        await self._answers()
        if request.blueprint_id not in self.blueprints:
            raise NotFound(f"blueprints/{request.blueprint_id}: no such blueprint")
        return pb.GetBlueprintResponse(blueprint=self.blueprints[request.blueprint_id])

    async def set_blueprint_status(self, request: pb.SetBlueprintStatusRequest) -> pb.SetBlueprintStatusResponse:
        await self._answers()
        blueprint = self.blueprints[request.blueprint_id]
        BLUEPRINT.move(blueprint.status, request.status)
        blueprint.status, blueprint.status_reason = request.status, request.reason
        self.history.append(("blueprint", BLUEPRINT.name(request.status)))
        return pb.SetBlueprintStatusResponse(blueprint=blueprint)

    async def create_kernel(self, manifest: pb.KernelManifest, files: Mapping[str, bytes]) -> pb.CreateKernelResponse:
        await self._answers()
        one = manifest.artifact
        verify(one.attestations, BUILT, one.artifact_id, self.roots)
        if one.artifact_id in self.kernels:
            return pb.CreateKernelResponse(kernel=self.kernels[one.artifact_id], existed=True)
        body = read_body(one.body)
        self.kernels[one.artifact_id] = pb.Kernel(
            artifact_id=one.artifact_id,
            blueprint_id=body.blueprint_id,
            interface=write_interface(body.interface),
            target=Target.Value(f"TARGET_{body.target.upper()}"),
            pipeline=body.pipeline,
            status=PENDING,
        )
        self.kernels[one.artifact_id].create_time.FromSeconds(len(self.kernels))
        self.artifacts[one.artifact_id] = (one, dict(files))
        self.history.append(("kernel", "created"))
        return pb.CreateKernelResponse(kernel=self.kernels[one.artifact_id])

    async def get_kernel(self, request: pb.GetKernelRequest) -> pb.GetKernelResponse:
        await self._answers()
        if request.artifact_id not in self.kernels:
            raise NotFound(f"kernels/{request.artifact_id}: no such kernel")
        kernel = pb.Kernel()
        kernel.CopyFrom(self.kernels[request.artifact_id])
        manifest = self.artifacts[request.artifact_id][0] if request.with_manifest else None
        return pb.GetKernelResponse(kernel=kernel, manifest=manifest)

    async def list_kernels(self, request: pb.ListKernelsRequest) -> pb.ListKernelsResponse:
        await self._answers()
        newest = [
            kernel
            for kernel in reversed(self.kernels.values())
            if request.blueprint_id in ("", kernel.blueprint_id)
            and (kernel.status == request.status or (not request.status and kernel.status != pb.KERNEL_STATUS_ARCHIVED))
        ]
        first, size = int(request.page.token or 0), request.page.size
        token = str(first + size) if first + size < len(newest) else ""
        return pb.ListKernelsResponse(kernels=newest[first : first + size], page=PageReply(next_token=token))

    async def download_kernel(self, request: pb.DownloadKernelRequest) -> tuple[ArtifactManifest, dict[str, bytes]]:
        await self._answers()
        manifest, files = self.artifacts[request.artifact_id]
        return manifest, dict(files)

    async def set_kernel_status(self, request: pb.SetKernelStatusRequest) -> pb.SetKernelStatusResponse:
        await self._answers()
        kernel = self.kernels[request.artifact_id]
        KERNEL.move(kernel.status, request.status)
        if request.status == pb.KERNEL_STATUS_VALIDATED:
            verify([request.attestation], PROMOTED, request.artifact_id, self.roots)
            self.artifacts[request.artifact_id][0].attestations.append(request.attestation)
        kernel.status, kernel.status_reason, kernel.report_name = request.status, request.reason, request.report_name
        kernel.forward_us_p50, kernel.peak_bytes = request.forward_us_p50, request.peak_bytes
        kernel.interest = request.interest
        kernel.tags.extend(request.tags)
        self.history.append(("kernel", KERNEL.name(request.status)))
        copy = pb.Kernel()
        copy.CopyFrom(kernel)
        return pb.SetKernelStatusResponse(kernel=copy)

    async def put_report(self, report: Any) -> int:
        await self._answers()
        if self.reports.get(report.name, report).body != report.body:
            raise Conflict(f"{report.name} is taken")
        self.reports[report.name] = report
        self.history.append(("report", report.name))
        return len(self.history)

    async def get_report(self, name: str) -> Any:
        if name not in self.reports:
            raise NotFound(f"{name}: no such report")
        return self.reports[name]

    async def list_reports(self, artifact_id: str, page: PageRequest) -> tuple[list[Any], PageReply]:
        newest = [r for r in reversed(self.reports.values()) if artifact_id in ("", r.artifact_id)]
        return newest[: page.size or 100], PageReply()

    async def _answers(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("the library is away")


class DirectPool:
    """A pool that does jobs in this process, after what `before` says: it may raise, or wait."""

    def __init__(self, jobs: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.jobs = dict(jobs)
        self.runs: list[str] = []
        self.timeouts: list[float] = []
        self.gate: asyncio.Event | None = None
        self.failures: list[Exception] = []
        self.replies: list[bytes] = []
        self.ended = 0  # jobs whose caller went away

    async def run(self, kind: str, payload: bytes, timeout_s: float) -> bytes:
        self.runs.append(kind)
        self.timeouts.append(timeout_s)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.ended += 1
                raise
        if self.failures:
            raise self.failures.pop(0)
        return self.replies.pop(0) if self.replies else self.jobs[kind](payload)


class Clock:
    """A second later at each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class Ears:
    """Whatever was published."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.deaf = False

    async def __call__(self, message: Any) -> None:
        if self.deaf:
            raise Unavailable("the bus is away")
        copy = type(message)()
        copy.CopyFrom(message)
        self.heard.append(copy)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; the test's own timeout bounds it."""
    while not condition():
        await asyncio.sleep(0.001)
