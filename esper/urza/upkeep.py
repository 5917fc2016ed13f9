"""Curation and verification over a store: what their pure parts need is read, and what they say is done."""

from collections.abc import Sequence

from esper.api.common.v1.resource_pb2 import ReplyHeader
from esper.api.urza.v1 import library_pb2 as pb
from esper.urza import kernels
from esper.urza.blobs import Blobs
from esper.urza.codec import read_interface
from esper.urza.curation import DAY_NS, DEFAULT_IDLE_DAYS, DEFAULT_WORKHORSE_USES, Action, Kept, Plan, Policy, plan
from esper.urza.port import ArtifactVerifier
from esper.urza.reader import Reader
from esper.urza.store import Store
from esper.urza.verify import Verification, verify_blobs, verify_rows
from esper.urza.writer import Writer

_BATCH = 100


async def curate(store: Store, request: pb.CurateLibraryRequest, now_ns: int) -> pb.CurateLibraryResponse:
    """Apply a policy, or say what it would do. A kernel that was moved meanwhile is left as it is."""

    async def look(reader: Reader) -> tuple[dict[str, pb.Kernel], Plan, int]:
        records, kept = await _kept(reader)
        return records, plan(kept, now_ns, read_policy(request.policy)), (await reader.head()).revision

    records, planned, revision = await store.read(look)
    done = list(planned.actions)
    if not request.dry_run:
        done = []
        for start in range(0, len(planned.actions), _BATCH):
            batch = planned.actions[start : start + _BATCH]
            archived, revision = await store.write(lambda tx, batch=batch: _archive(tx, batch, now_ns))  # type: ignore[misc]
            done += archived
    reply = pb.CurateLibraryResponse(kernels=len(records), protected_kernels=len(planned.protected))
    reply.header.revision = revision
    for action in done:
        kernel = records[action.artifact_id]
        reply.actions.add(
            artifact_id=action.artifact_id,
            previous_status=kernel.status,
            reason=action.reason,
            title=kernel.title,
            size_bytes=kernel.size_bytes,
        )
    return reply


def read_policy(message: pb.CurationPolicy) -> Policy:
    """Zeros stand for the defaults."""
    return Policy(
        idle_ns=(message.idle_days or DEFAULT_IDLE_DAYS) * DAY_NS,
        workhorse_uses=message.workhorse_uses or DEFAULT_WORKHORSE_USES,
        protected=frozenset(message.protected_artifact_ids),
        max_total_bytes=message.max_total_bytes,
    )


async def verify(
    store: Store, blobs: Blobs, verifier: ArtifactVerifier, request: pb.VerifyLibraryRequest
) -> pb.VerifyLibraryResponse:
    """Check the database in one state of it, then the blobs of its kernels."""
    seen, head = await store.read(lambda reader: _verified(reader, verifier))
    if not request.skip_blobs:
        await verify_blobs(blobs, seen)
    return pb.VerifyLibraryResponse(
        header=head, problems=seen.problems, entries=seen.entries, rows=seen.rows, blobs=seen.blobs
    )


async def _verified(reader: Reader, verifier: ArtifactVerifier) -> tuple[Verification, ReplyHeader]:
    return await verify_rows(reader, verifier), ReplyHeader(revision=(await reader.head()).revision)


async def _archive(tx: Writer, actions: Sequence[Action], now_ns: int) -> tuple[list[Action], int]:
    done = [action for action in actions if await kernels.archive(tx, action, now_ns) is not None]
    return done, tx.revision


async def _kept(reader: Reader) -> tuple[dict[str, pb.Kernel], list[Kept]]:
    """Every kernel that is not archived: its record, and what curation reads of it."""
    uses, targets = await reader.uses(), {row["target_name"] async for row in reader.rows("aliases")}
    records, kept = dict[str, pb.Kernel](), list[Kept]()
    async for row in reader.rows("kernels"):
        kernel = pb.Kernel.FromString(row["record"])
        if kernel.status == pb.KERNEL_STATUS_ARCHIVED:
            continue
        count, last_used_ns = uses.get(kernel.artifact_id, (0, 0))
        records[kernel.artifact_id] = kernel
        kept.append(
            Kept(
                artifact_id=kernel.artifact_id,
                interface=read_interface(kernel.interface),
                target=kernel.target,
                status=kernel.status,
                parameter_count=kernel.parameter_count,
                forward_us_p50=kernel.forward_us_p50,
                peak_bytes=kernel.peak_bytes,
                size_bytes=kernel.size_bytes,
                created_ns=kernel.create_time.ToNanoseconds(),
                uses=count,
                last_used_ns=last_used_ns,
                aliased=bool(targets & {f"kernels/{kernel.artifact_id}", f"blueprints/{kernel.blueprint_id}"}),
            )
        )
    return records, kept
