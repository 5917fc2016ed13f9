"""What one transaction of the library can write. No decision is made here.

A `Writer` holds the store's only write lock from its first statement, so what it read stays
true until it commits; each change it makes takes the next revision and one ledger entry,
and its events go to the outbox with it.
"""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.api.urza.v1 import library_pb2 as pb
from esper.urza import schema
from esper.urza.codec import FileEntry, read_interface
from esper.urza.events import Event
from esper.urza.ledger import Entry, Head, append, canonical_json
from esper.urza.port import StoredReport
from esper.urza.reader import Reader


class Writer(Reader):
    """Reads and writes of one transaction; made by `Store.write`, which locks and commits."""

    def __init__(self, connection: AsyncConnection, head: Head) -> None:
        super().__init__(connection)
        self._head = head

    @property
    def revision(self) -> int:
        """The newest revision, this transaction's changes included."""
        return self._head.revision

    @property
    def next_revision(self) -> int:
        """What the next change will be."""
        return self._head.revision + 1

    async def record_change(
        self,
        *,
        time_ns: int,
        action: str,
        resource_name: str,
        detail: Mapping[str, object],
        events: Collection[Event] = (),
    ) -> None:
        """Add the ledger entry of one change, and its events. The caller writes the rows."""
        entry = append(self._head, time_ns=time_ns, action=action, resource_name=resource_name, detail=detail)
        self._head = Head(entry.revision, entry.digest)
        await self._insert(schema.ledger, **{field: getattr(entry, field) for field in Entry.__slots__})
        await self._connection.execute(
            update(schema.meta).values(revision=self._head.revision, digest=self._head.digest)
        )
        for event in events:
            await self._insert(
                schema.outbox,
                event_id=f"urza/{entry.digest}/{event.payload_type}",
                payload_type=event.payload_type,
                payload=event.payload,
                time_ns=time_ns,
                published=False,
            )

    async def remember(self, request_id: str, key: str, reply: bytes, time_ns: int) -> None:
        if request_id:
            await self._insert(schema.requests, request_id=request_id, key=key, reply=reply, time_ns=time_ns)

    async def add_blueprint(self, blueprint: pb.Blueprint) -> None:
        await self._insert(schema.blueprints, **blueprint_row(blueprint, self.next_revision))
        parents = await self.revisions(blueprint.parent_ids)
        if parents:
            rows = [{"child": self.next_revision, "parent": parent} for parent in parents.values()]
            await self._connection.execute(insert(schema.lineage), rows)

    async def update_blueprint(self, blueprint: pb.Blueprint) -> None:
        table = schema.blueprints
        await self._connection.execute(
            update(table)
            .where(table.c.blueprint_id == blueprint.blueprint_id)
            .values(status=blueprint.status, record=blueprint.SerializeToString(deterministic=True))
        )

    async def add_kernel(self, kernel: pb.Kernel, manifest: ArtifactManifest, files: Mapping[str, FileEntry]) -> None:
        await self._insert(schema.kernels, **kernel_row(kernel, manifest, self.next_revision))
        rows = [
            {"artifact_id": kernel.artifact_id, "file": name, "digest": file.digest, "size_bytes": file.size_bytes}
            for name, file in files.items()
        ]
        if rows:
            await self._connection.execute(insert(schema.kernel_files), rows)

    async def update_kernel(self, kernel: pb.Kernel, manifest: ArtifactManifest) -> None:
        table = schema.kernels
        await self._connection.execute(
            update(table)
            .where(table.c.artifact_id == kernel.artifact_id)
            .values(**_kernel_columns(kernel, manifest, self.next_revision))
        )

    async def add_uses(self, uses: Mapping[str, tuple[int, int]]) -> None:
        """Count uses of kernels: how many more, and when the last was. No change of the library, no revision."""
        table = schema.kernel_uses
        for artifact_id, (count, last_used_ns) in uses.items():
            mine = table.c.artifact_id == artifact_id
            added = {"uses": table.c.uses + count, "last_used_ns": last_used_ns}
            if not (await self._connection.execute(update(table).where(mine).values(**added))).rowcount:
                await self._insert(table, artifact_id=artifact_id, uses=count, last_used_ns=last_used_ns)

    async def point_alias(self, alias: str, target_name: str, *, existed: bool) -> None:
        table = schema.aliases
        if existed:
            await self._connection.execute(update(table).where(table.c.alias == alias).values(target_name=target_name))
        else:
            await self._insert(table, alias=alias, target_name=target_name)

    async def add_report(self, report: StoredReport) -> None:
        await self._insert(
            schema.reports,
            name=report.name,
            artifact_id=report.artifact_id,
            revision=self.next_revision,
            body=report.body,
        )

    async def mark_published(self, sequences: Collection[int]) -> None:
        table = schema.outbox
        await self._connection.execute(update(table).where(table.c.sequence.in_(sequences)).values(published=True))

    async def forget_before(self, time_ns: int) -> tuple[int, int]:
        """Drop remembered requests and published events older than that; how many of each."""
        requests, outbox = schema.requests, schema.outbox
        replies = await self._delete(requests.delete().where(requests.c.time_ns < time_ns))
        events = await self._delete(outbox.delete().where(outbox.c.published.is_(True), outbox.c.time_ns < time_ns))
        return replies, events

    async def _delete(self, statement: Any) -> int:
        return int((await self._connection.execute(statement)).rowcount)

    async def _insert(self, table: Any, **values: object) -> None:
        await self._connection.execute(insert(table).values(**values))


def blueprint_row(blueprint: pb.Blueprint, revision: int) -> dict[str, object]:
    """A blueprint's row as it is created at `revision`."""
    return {
        "blueprint_id": blueprint.blueprint_id,
        "revision": revision,
        "status": blueprint.status,
        "family": blueprint.family,
        "record": blueprint.SerializeToString(deterministic=True),
    }


def kernel_row(kernel: pb.Kernel, manifest: ArtifactManifest, revision: int) -> dict[str, object]:
    """A kernel's row as it is created at `revision`."""
    key = read_interface(kernel.interface)
    return {
        "artifact_id": kernel.artifact_id,
        "revision": revision,
        "blueprint_id": kernel.blueprint_id,
        "kind": key.kind,
        "channels": key.channels,
        "element_type": key.element_type,
        "causal": key.causal,
        "target": kernel.target,
        "parameter_count": kernel.parameter_count,
        **_kernel_columns(kernel, manifest, revision),
    }


def _kernel_columns(kernel: pb.Kernel, manifest: ArtifactManifest, revision: int) -> dict[str, object]:
    """The columns a new status may change."""
    return {
        "changed": revision,
        "status": kernel.status,
        "forward_us_p50": kernel.forward_us_p50,
        "peak_bytes": kernel.peak_bytes,
        "interest": kernel.interest,
        "risk": kernel.risk,
        "tags_json": canonical_json(list(kernel.tags)),
        "record": kernel.SerializeToString(deterministic=True),
        "manifest": manifest.SerializeToString(deterministic=True),
    }
