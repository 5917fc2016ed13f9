"""What a transaction does to kernels: add one, move its status, find the best.

VALIDATED needs a "promoted" attestation that verifies and that the kernel does not carry
already: a kernel that left VALIDATED comes back through a new evaluation only.
"""

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, Attestation
from esper.api.common.v1.resource_pb2 import ReplyHeader
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Exhausted, InvalidRequest, NotFound, PreconditionFailed, Untrusted
from esper.urza import codec, events, lineage
from esper.urza.codec import KernelBody
from esper.urza.curation import CURATED, Action
from esper.urza.pages import Pages, listing, size_of
from esper.urza.pedigree import Members, Pedigree, members
from esper.urza.port import ArtifactVerifier
from esper.urza.reader import Reader
from esper.urza.statuses import KERNEL
from esper.urza.tables import SearchTables
from esper.urza.writer import Writer

# The manifest's own limit.
MAX_ATTESTATIONS = 64


async def need(reader: Reader, artifact_id: str) -> pb.Kernel:
    """Raises NotFound."""
    kernel = await reader.kernel(artifact_id)
    if kernel is None:
        raise NotFound(f"kernels/{artifact_id}: no such kernel in this library")
    return kernel


async def need_parent(reader: Reader, body: KernelBody) -> pb.Blueprint:
    """The blueprint a kernel was compiled from. Raises PreconditionFailed where it is not here."""
    blueprint = await reader.blueprint(body.blueprint_id)
    if blueprint is None:
        raise PreconditionFailed(
            f"blueprints/{body.blueprint_id}: a kernel's blueprint must be in the library first; create it, then retry"
        )
    return blueprint


async def create(tx: Writer, manifest: ArtifactManifest, body: KernelBody, now_ns: int) -> pb.CreateKernelResponse:
    """Add the row of a kernel whose files are stored and whose manifest was checked."""
    there = await tx.kernel(manifest.artifact_id)
    if there is not None:
        return pb.CreateKernelResponse(kernel=there, existed=True)
    kernel = codec.new_kernel(manifest.artifact_id, body, await need_parent(tx, body), now_ns)
    await tx.add_kernel(kernel, manifest, body.files)
    await tx.record_change(
        time_ns=now_ns,
        action="kernel.create",
        resource_name=f"kernels/{manifest.artifact_id}",
        detail={
            "blueprint_id": body.blueprint_id,
            "pipeline": body.pipeline,
            "files": {name: entry.digest for name, entry in body.files.items()},
            "built_by": [one.key_id for one in manifest.attestations],
        },
        events=(events.kernel_ready(kernel),),
    )
    return pb.CreateKernelResponse(kernel=kernel)


def as_stored(manifest: ArtifactManifest) -> ArtifactManifest:
    """An uploaded manifest with its "built" statements only: promotion comes with a status, checked then."""
    built = [one for one in manifest.attestations if one.role == Attestation.ROLE_BUILT]
    return ArtifactManifest(artifact_id=manifest.artifact_id, body=manifest.body, attestations=built)


async def set_status(
    tx: Writer, request: pb.SetKernelStatusRequest, verifier: ArtifactVerifier, now_ns: int
) -> pb.SetKernelStatusResponse:
    """Raises NotFound, PreconditionFailed (the move), Untrusted (the attestation), InvalidRequest, Exhausted."""
    kernel = await need(tx, request.artifact_id)
    manifest = await tx.manifest(request.artifact_id)
    KERNEL.move(kernel.status, request.status)
    _admit_attestation(manifest, request, kernel.status, verifier)
    before = kernel.status
    _apply(request, kernel)
    await _move(tx, kernel, manifest, before, now_ns)
    return pb.SetKernelStatusResponse(kernel=kernel)


async def quarantine(tx: Writer, artifact_id: str, reason: str, now_ns: int) -> None:
    """Take a kernel out of use, once; it may have been by another reader."""
    kernel = await need(tx, artifact_id)
    before = kernel.status
    if before == pb.KERNEL_STATUS_QUARANTINED:
        return
    kernel.status = pb.KernelStatus.ValueType(KERNEL.move(before, pb.KERNEL_STATUS_QUARANTINED))
    kernel.status_reason = reason
    await _move(tx, kernel, await tx.manifest(artifact_id), before, now_ns)


async def archive(tx: Writer, action: Action, now_ns: int) -> int | None:
    """Take a kernel out of use as a policy says; its status before, None where it is no policy's any more."""
    kernel = await need(tx, action.artifact_id)
    before = kernel.status
    if before not in CURATED:
        return None
    kernel.status = pb.KernelStatus.ValueType(KERNEL.move(before, pb.KERNEL_STATUS_ARCHIVED))
    kernel.status_reason = action.reason
    await _move(tx, kernel, await tx.manifest(action.artifact_id), before, now_ns)
    return before


def need_sendable(kernel: pb.Kernel) -> None:
    """Raises PreconditionFailed for a quarantined kernel."""
    if kernel.status == pb.KERNEL_STATUS_QUARANTINED:
        raise PreconditionFailed(
            f"kernels/{kernel.artifact_id} is QUARANTINED ({kernel.status_reason}) and is not handed out; "
            "upload its files again, then have it evaluated anew: "
            f"esper library move kernels/{kernel.artifact_id} PENDING_BENCHMARKING --reason WHY"
        )


async def find(reader: Reader, request: pb.SearchKernelsRequest, tables: SearchTables) -> pb.SearchKernelsResponse:
    """Raises InvalidRequest (no interface, limit out of bounds), NotFound (a lineage's blueprint)."""
    scope, wish = codec.read_search(request)
    async with tables.lock:
        families = await _families(reader, request, tables.pedigree)
        places = await tables.rank(reader, scope, wish, families)
        records = await reader.kernel_records([place.artifact_id for place in places])
        reply = pb.SearchKernelsResponse(
            header=ReplyHeader(revision=(await reader.head()).revision),
            empty_reason="" if places else tables.unmeasured(scope, wish, families),
        )
    for place in places:
        reply.matches.add(score=place.score, reason=place.reason).kernel.MergeFromString(records[place.artifact_id])
    return reply


async def _families(reader: Reader, request: pb.SearchKernelsRequest, pedigree: Pedigree) -> list[Members]:
    """Of which blueprints the kernels must be. Raises NotFound for a lineage's blueprint that is not here."""
    above, below, only = request.descends_from_blueprint_id, request.ancestor_of_blueprint_id, request.blueprint_id
    if not (above or below or only):
        return []
    found, size = [], (await reader.head()).revision + 1
    if above or below:
        await pedigree.follow(reader)
    if above:
        found.append(pedigree.descendants(await lineage.start_of(reader, above), size))
    if below:
        found.append(pedigree.ancestors(await lineage.start_of(reader, below), size))
    if only:
        found.append(members((await reader.revisions([only])).get(only, 0), size))
    return found


async def list_page(reader: Reader, request: pb.ListKernelsRequest, pages: Pages) -> pb.ListKernelsResponse:
    """Raises InvalidRequest for a page token of another list."""
    name, size = listing("kernels", request.status, request.blueprint_id), size_of(request.page)
    rows = await reader.kernels(request.status, request.blueprint_id, pages.start(request.page, name), size + 1)
    sent = rows[:size]
    return pb.ListKernelsResponse(
        header=ReplyHeader(revision=(await reader.head()).revision),
        kernels=[kernel for _, kernel in sent],
        page=pages.reply(name, sent[-1][0] if sent else 0, more=len(rows) > size),
    )


async def _move(tx: Writer, kernel: pb.Kernel, manifest: ArtifactManifest, before: int, now_ns: int) -> None:
    await tx.update_kernel(kernel, manifest)
    await tx.record_change(
        time_ns=now_ns,
        action="kernel.status",
        resource_name=f"kernels/{kernel.artifact_id}",
        detail={
            "from": KERNEL.name(before),
            "to": KERNEL.name(kernel.status),
            "reason": kernel.status_reason,
            "tags": list(kernel.tags),
            "forward_us_p50": kernel.forward_us_p50,
            "peak_bytes": kernel.peak_bytes,
            "report_name": kernel.report_name,
            "interest": kernel.interest,
            "risk": kernel.risk,
            "attested_by": [f"{Attestation.Role.Name(one.role)} {one.key_id}" for one in manifest.attestations],
        },
        events=events.after_status(kernel),
    )


def _admit_attestation(
    manifest: ArtifactManifest, request: pb.SetKernelStatusRequest, current: int, verifier: ArtifactVerifier
) -> None:
    """Check the statement a move brings, and add it to `manifest`."""
    name, given = f"kernels/{request.artifact_id}", request.attestation
    promotes = request.HasField("attestation") and given.role == Attestation.ROLE_PROMOTED
    if promotes != (request.status == pb.KERNEL_STATUS_VALIDATED):
        if promotes:
            raise InvalidRequest(f'{name}: a "promoted" attestation goes with VALIDATED, not with another status')
        raise Untrusted(f'{name}: VALIDATED needs a "promoted" attestation by a known evaluation key; none was sent')
    if not request.HasField("attestation"):
        return
    alone = ArtifactManifest(artifact_id=manifest.artifact_id, body=manifest.body, attestations=[given])
    verifier.check_attested(alone, given.role)
    if given not in manifest.attestations:
        if len(manifest.attestations) >= MAX_ATTESTATIONS:
            raise Exhausted(f"{name} has {len(manifest.attestations)} attestations, the most; build it anew")
        manifest.attestations.append(given)
    elif promotes and current != pb.KERNEL_STATUS_VALIDATED:
        raise Untrusted(f"{name}: this attestation promoted it before it was withdrawn; evaluate it again")


def _apply(request: pb.SetKernelStatusRequest, kernel: pb.Kernel) -> None:
    """What was not sent stays as it is."""
    kernel.status = request.status
    kernel.status_reason = request.reason
    if request.tags:
        kernel.ClearField("tags")
        kernel.tags.extend(dict.fromkeys(request.tags))
    if request.forward_us_p50:
        kernel.forward_us_p50 = request.forward_us_p50
    if request.peak_bytes:
        kernel.peak_bytes = codec.stored_integer("peak_bytes", request.peak_bytes)
    if request.report_name:
        kernel.report_name = request.report_name
    if request.interest:
        kernel.interest = request.interest
    if request.risk:
        kernel.risk = request.risk
