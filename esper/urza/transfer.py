"""Kernels in and out with their files: blobs first and row second, digests checked both ways."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, Attestation
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from esper.urza import intake, kernels
from esper.urza.blobs import Blobs, closing
from esper.urza.codec import FileEntry, KernelBody, request_key
from esper.urza.once import once
from esper.urza.port import FilePiece, Ports
from esper.urza.reader import Reader
from esper.urza.store import Store
from esper.urza.writer import Writer


@dataclass(frozen=True, slots=True)
class FileStream:
    """One file on its way out: `pieces` raises Corrupt before its last piece if the file has changed."""

    file: str
    digest: str
    size_bytes: int
    pieces: AsyncGenerator[bytes, None]


class Transfers:
    """What needs both the store and the blobs."""

    def __init__(self, store: Store, blobs: Blobs, ports: Ports) -> None:
        self._store = store
        self._blobs = blobs
        self._ports = ports
        # Uses not yet in the store: how many, and when the last was.
        self._uses: dict[str, tuple[int, int]] = {}

    async def receive(self, manifest: pb.KernelManifest, files: AsyncIterator[FilePiece]) -> pb.CreateKernelResponse:
        """See `Library.create_kernel`. A repeated request leaves its files unread."""
        body = self._checked_body(manifest.artifact)

        async def precheck(reader: Reader) -> bytes | None:
            await kernels.need_parent(reader, body)
            return await reader.earlier_reply(manifest.request_id, request_key(manifest))

        earlier = await self._store.read(precheck)
        if earlier is not None:
            return pb.CreateKernelResponse.FromString(earlier)
        await intake.store_files(body, files, self._blobs)
        return await self._add(manifest, body)

    async def send(self, request: pb.DownloadKernelRequest) -> tuple[ArtifactManifest, AsyncIterator[FileStream]]:
        """See `Library.download_kernel`."""

        async def look_up(reader: Reader) -> tuple[ArtifactManifest, dict[str, FileEntry]]:
            kernel = await kernels.need(reader, request.artifact_id)
            kernels.need_sendable(kernel)
            if kernel.status == pb.KERNEL_STATUS_VALIDATED:  # before that, it is fetched to be evaluated
                used = self._uses.get(kernel.artifact_id, (0, 0))[0]
                self._uses[kernel.artifact_id] = (used + 1, self._ports.clock_ns())
            return await reader.manifest(request.artifact_id), await reader.files(request.artifact_id)

        manifest, files = await self._store.read(look_up)
        try:
            self._ports.verifier.check_id(manifest)
        except Corrupt as error:
            raise await self._quarantine(request.artifact_id, "manifest", error) from error
        return manifest, self._outgoing(request.artifact_id, files)

    async def store_uses(self) -> None:
        """Add the uses since the last call to the store's, in one transaction; a crash loses what was not."""
        uses, self._uses = self._uses, {}
        if uses:
            await self._store.write(lambda tx: tx.add_uses(uses))

    def _checked_body(self, manifest: ArtifactManifest) -> KernelBody:
        """The id, then the signature, then what the body says: before a byte of a file is taken."""
        try:
            self._ports.verifier.check_id(manifest)
        except Corrupt as error:
            raise InvalidRequest(str(error), {"artifact.artifact_id": str(error)}) from error
        self._ports.verifier.check_attested(manifest, Attestation.ROLE_BUILT)
        return self._ports.verifier.read_body(manifest)

    async def _add(self, manifest: pb.KernelManifest, body: KernelBody) -> pb.CreateKernelResponse:
        async def add(tx: Writer) -> pb.CreateKernelResponse:
            for entry in body.files.values():
                if not await self._blobs.exists(entry.digest):  # the other half of sweep.py's rule
                    raise Unavailable(f"blob {entry.digest} was swept while its kernel was uploaded; send it again")
            return await kernels.create(tx, kernels.as_stored(manifest.artifact), body, self._ports.clock_ns())

        return await once(self._store, self._ports.clock_ns, manifest, pb.CreateKernelResponse, add)

    async def _outgoing(self, artifact_id: str, files: Mapping[str, FileEntry]) -> AsyncIterator[FileStream]:
        for name, entry in files.items():
            yield FileStream(name, entry.digest, entry.size_bytes, self._pieces(artifact_id, name, entry.digest))

    async def _pieces(self, artifact_id: str, name: str, digest: str) -> AsyncGenerator[bytes, None]:
        try:
            async with closing(self._blobs.read(digest)) as pieces:
                async for piece in pieces:
                    yield piece
        except (Corrupt, NotFound) as error:
            raise await self._quarantine(artifact_id, f"file {name}", error) from error

    async def _quarantine(self, artifact_id: str, part: str, error: Exception) -> Corrupt:
        """Quarantine a kernel one part of which is wrong; the error to raise."""
        reason = f"{part}: {error}"
        await self._store.write(lambda tx: kernels.quarantine(tx, artifact_id, reason, self._ports.clock_ns()))
        return Corrupt(f"kernels/{artifact_id}, {reason}; the kernel is quarantined now")
