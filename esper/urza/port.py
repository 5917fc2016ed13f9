"""What the library offers to other components, and what it asks of them.

`Library` has one method per rpc of proto/esper/api/urza/v1/library.proto, named like
the rpc in snake case, taking its request and returning its reply; errors are those
written there, as classes of esper.errors. Three rpcs stream, and differ:

- CreateKernel takes the manifest and the files as bytes; a client adapter sends
  MANIFEST, then HEADER and DATA of each file.
- DownloadKernel returns manifest and files; a client adapter collects the stream and
  checks each file's digest against its header.
- WatchLibrary is an async iterator; a client adapter returns the stub's call.

So a client adapter is a stub, a deadline, the error table of esper.rpc, and the two
chunk conversions; every other method is `return await self._stub.GetKernel(request)`.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, Attestation
from esper.api.common.v1.blueprint_pb2 import Graph
from esper.api.common.v1.interface_pb2 import Interface
from esper.api.common.v1.resource_pb2 import PageReply, PageRequest
from esper.api.urza.v1 import library_pb2 as pb
from esper.urza.codec import KernelBody
from esper.urza.pages import Pages


class Library(Protocol):
    """The library as every other component sees it."""

    async def create_blueprint(self, request: pb.CreateBlueprintRequest) -> pb.CreateBlueprintResponse: ...

    async def get_blueprint(self, request: pb.GetBlueprintRequest) -> pb.GetBlueprintResponse: ...

    async def list_blueprints(self, request: pb.ListBlueprintsRequest) -> pb.ListBlueprintsResponse: ...

    async def set_blueprint_status(self, request: pb.SetBlueprintStatusRequest) -> pb.SetBlueprintStatusResponse: ...

    async def create_kernel(self, manifest: pb.KernelManifest, files: Mapping[str, bytes]) -> pb.CreateKernelResponse:
        """Store a kernel whole or not at all.

        `files` maps the names in the body to their bytes. Raises InvalidRequest (id, name, size or
        digest does not fit the body), Untrusted (no "built" attestation by a known forge key),
        PreconditionFailed (its blueprint is not here), Exhausted (disk full).
        """
        ...

    async def get_kernel(self, request: pb.GetKernelRequest) -> pb.GetKernelResponse: ...

    async def download_kernel(self, request: pb.DownloadKernelRequest) -> tuple[ArtifactManifest, dict[str, bytes]]:
        """Return a kernel's manifest and files; every digest has been checked.

        Raises NotFound, PreconditionFailed (quarantined), Corrupt (a file is not what its digest
        says; the kernel is quarantined by the time this is raised).
        """
        ...

    async def search_kernels(self, request: pb.SearchKernelsRequest) -> pb.SearchKernelsResponse: ...

    async def set_kernel_status(self, request: pb.SetKernelStatusRequest) -> pb.SetKernelStatusResponse: ...

    async def list_kernels(self, request: pb.ListKernelsRequest) -> pb.ListKernelsResponse: ...

    async def get_lineage(self, request: pb.GetLineageRequest) -> pb.GetLineageResponse: ...

    async def set_alias(self, request: pb.SetAliasRequest) -> pb.SetAliasResponse: ...

    async def get_alias(self, request: pb.GetAliasRequest) -> pb.GetAliasResponse: ...

    async def list_aliases(self, request: pb.ListAliasesRequest) -> pb.ListAliasesResponse: ...

    async def curate_library(self, request: pb.CurateLibraryRequest) -> pb.CurateLibraryResponse: ...

    async def verify_library(self, request: pb.VerifyLibraryRequest) -> pb.VerifyLibraryResponse: ...

    def watch_library(self, request: pb.WatchLibraryRequest) -> AsyncIterator[pb.WatchLibraryResponse]:
        """Yield each change after `after_revision` once, in order, then live ones; never ends by itself.

        Raises OutOfRange (the store has not come that far) and Unavailable (the library closes).
        """
        ...

    async def list_ledger(self, request: pb.ListLedgerRequest) -> pb.ListLedgerResponse: ...


@dataclass(frozen=True, slots=True)
class StoredReport:
    """An evaluation report: `name` is "reports/<id>", `body` is opaque to the library."""

    name: str
    artifact_id: str
    body: bytes


class Reports(Protocol):
    """Where evaluation reports are kept."""

    async def put_report(self, report: StoredReport) -> int:
        """Store a report and return the revision; the same report again changes nothing.

        Raises NotFound (no such kernel), Conflict (the name is taken by other bytes), InvalidRequest
        (the name is not "reports/<64 hexadecimal digits>", or the body is over 4 MiB).
        """
        ...

    async def get_report(self, name: str) -> StoredReport:
        """Raises NotFound."""
        ...

    async def list_reports(self, artifact_id: str, page: PageRequest) -> tuple[list[StoredReport], PageReply]:
        """Newest first; an empty artifact id lists all. Raises InvalidRequest for a bad page token."""
        ...


class ArtifactVerifier(Protocol):
    """What the library needs to know about the artifact format and the trust roots."""

    def check_id(self, manifest: ArtifactManifest) -> None:
        """Raises Corrupt unless the id is the body's sha256."""
        ...

    def check_attested(self, manifest: ArtifactManifest, role: Attestation.Role.ValueType) -> None:
        """Raises Untrusted unless one attestation of `manifest` says `role`, by a known key, and verifies."""
        ...

    def read_body(self, manifest: ArtifactManifest) -> KernelBody:
        """Interpret a body; called after both checks. Raises InvalidRequest where it is not an artifact's."""
        ...


class FilePiece(Protocol):
    """Some bytes of one file on its way in; `last` ends the file. `esper.rpc.chunks.Piece` is one."""

    @property
    def file(self) -> str: ...

    @property
    def data(self) -> bytes: ...

    @property
    def last(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Ports:
    """What the library asks of other packages; pure functions all."""

    # Blueprint id of a graph. Raises InvalidBlueprint for one that is not well formed.
    identify: Callable[[Graph], str]
    # Whether a graph can be lowered for an interface, and why (not).
    compatible: Callable[[Graph, Interface], tuple[bool, str]]
    verifier: ArtifactVerifier
    pages: Pages
    # Nanoseconds since 1970. The ledger's order never depends on it.
    clock_ns: Callable[[], int]
