"""What the evaluator needs of others: a library, a place for reports, workers, and ears for its news."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.api.common.v1.resource_pb2 import PageReply, PageRequest
from esper.api.urabrask.v1 import evaluation_pb2
from esper.api.urza.v1 import library_pb2 as pb


class Library(Protocol):
    """The part of the central library that the evaluator uses; errors are those of its contract."""

    async def get_blueprint(self, request: pb.GetBlueprintRequest) -> pb.GetBlueprintResponse: ...

    async def set_blueprint_status(self, request: pb.SetBlueprintStatusRequest) -> pb.SetBlueprintStatusResponse: ...

    async def get_kernel(self, request: pb.GetKernelRequest) -> pb.GetKernelResponse: ...

    async def list_kernels(self, request: pb.ListKernelsRequest) -> pb.ListKernelsResponse: ...

    async def download_kernel(self, request: pb.DownloadKernelRequest) -> tuple[ArtifactManifest, dict[str, bytes]]: ...

    async def set_kernel_status(self, request: pb.SetKernelStatusRequest) -> pb.SetKernelStatusResponse: ...


class StoredReport(Protocol):
    """A report as it is kept: "reports/<id>", whose kernel it is about, and its bytes."""

    @property
    def name(self) -> str: ...

    @property
    def artifact_id(self) -> str: ...

    @property
    def body(self) -> bytes: ...


class Reports(Protocol):
    """Where reports are kept."""

    async def put_report(self, report: Any) -> int:
        """Store a StoredReport; the same one again changes nothing."""
        ...

    async def get_report(self, name: str) -> StoredReport:
        """Raises NotFound."""
        ...

    async def list_reports(self, artifact_id: str, page: PageRequest) -> tuple[Sequence[StoredReport], PageReply]:
        """Newest first; an empty artifact id lists all. Raises InvalidRequest for a bad page token."""
        ...


class Pool(Protocol):
    """Worker processes. One that evaluates forks, so it must have one thread."""

    async def run(self, kind: str, payload: bytes, timeout_s: float) -> bytes:
        """Do one job and return its reply.

        Raises DeadlineExceeded (still at work after `timeout_s`; the worker was ended), Unavailable (the
        worker died) and KernelFault (the job raised).
        """
        ...


Publish = Callable[[evaluation_pb2.KernelCharacterized], Awaitable[None]]
