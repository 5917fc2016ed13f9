"""What one transaction of the library can read. No decision is made here."""

import json
from collections.abc import AsyncIterator, Collection, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Row, Select, bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Conflict
from esper.urza import schema
from esper.urza.codec import Candidate, FileEntry, InterfaceKey
from esper.urza.events import Event, OutboxEvent
from esper.urza.ledger import Entry, Head
from esper.urza.port import StoredReport

# Values in one query's IN; databases have a limit.
_IN = 500
# Written once: a search asks with up to 1,000 ids, and to write it anew for those takes a millisecond.
_RECORDS = select(schema.kernels.c.artifact_id, schema.kernels.c.record).where(
    schema.kernels.c.artifact_id.in_(bindparam("artifact_ids", expanding=True))
)


class Reader:
    """Reads of one transaction, which sees one state of the store throughout."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def head(self) -> Head:
        row = await self._one(select(schema.meta.c.revision, schema.meta.c.digest))
        assert row is not None, "the store wrote this row when it made the tables"
        return Head(row.revision, row.digest)

    async def earlier_reply(self, request_id: str, key: str) -> bytes | None:
        """The reply this request id got before. Raises Conflict where it was another request."""
        if not request_id:
            return None
        table = schema.requests
        row = await self._one(select(table.c.key, table.c.reply).where(table.c.request_id == request_id))
        if row is None:
            return None
        if row.key != key:
            raise Conflict(f"request id {request_id!r} was used for another request; take a new id for a new request")
        return bytes(row.reply)

    async def blueprint(self, blueprint_id: str) -> pb.Blueprint | None:
        table = schema.blueprints
        row = await self._one(select(table.c.record).where(table.c.blueprint_id == blueprint_id))
        return None if row is None else pb.Blueprint.FromString(row.record)

    async def missing_blueprints(self, blueprint_ids: Collection[str]) -> list[str]:
        column = schema.blueprints.c.blueprint_id
        found = {row[0] for row in await self._all(select(column).where(column.in_(blueprint_ids)))}
        return sorted(set(blueprint_ids) - found)

    async def revisions(self, blueprint_ids: Collection[str]) -> dict[str, int]:
        """Of those blueprints that are here."""
        table = schema.blueprints
        query = select(table.c.blueprint_id, table.c.revision).where(table.c.blueprint_id.in_(blueprint_ids))
        return {row.blueprint_id: row.revision for row in await self._all(query)}

    async def blueprints_at(self, revisions: Collection[int], *, newest: bool) -> list[tuple[int, pb.Blueprint]]:
        """Blueprints by the revision that created each; newest or oldest first."""
        table = schema.blueprints
        order = table.c.revision.desc() if newest else table.c.revision
        query = select(table.c.revision, table.c.record).where(table.c.revision.in_(revisions)).order_by(order)
        return [(row.revision, pb.Blueprint.FromString(row.record)) for row in await self._all(query)]

    async def kin(self, revisions: Sequence[int], *, down: bool) -> list[int]:
        """Children, or parents, of blueprints; all by revision, each once."""
        here, there = _edge(down)
        found: dict[int, None] = {}
        for start in range(0, len(revisions), _IN):
            query = select(there).where(here.in_(revisions[start : start + _IN]))
            found.update(dict.fromkeys(row[0] for row in await self._all(query)))
        return list(found)

    async def new_edges(self, after: int, limit: int) -> list[tuple[int, int]]:
        """(child, parent) of children created after a revision, by child: about `limit`, and never half a child's."""
        table = schema.lineage
        query = select(table.c.child, table.c.parent).order_by(table.c.child)
        found = await self._all(query.where(table.c.child > after).limit(limit))
        if len(found) == limit:
            last = found[-1].child
            whole = await self._all(query.where(table.c.child == last))
            found = [*(row for row in found if row.child != last), *whole]
        return [(row.child, row.parent) for row in found]

    async def blueprints(self, status: int, family: str, before: int, limit: int) -> list[tuple[int, pb.Blueprint]]:
        """Newest first, created before revision `before` (0: from the newest), with that revision."""
        table = schema.blueprints
        query = select(table.c.revision, table.c.record).order_by(table.c.revision.desc()).limit(limit)
        if before:
            query = query.where(table.c.revision < before)
        if family:
            query = query.where(table.c.family == family)
        if status:
            query = query.where(table.c.status == status)
        else:
            query = query.where(table.c.status != pb.BLUEPRINT_STATUS_ARCHIVED)
        return [(row.revision, pb.Blueprint.FromString(row.record)) for row in await self._all(query)]

    async def has_kernel(self, blueprint_id: str, status: int) -> bool:
        table = schema.kernels
        query = select(table.c.artifact_id).where(table.c.blueprint_id == blueprint_id, table.c.status == status)
        return await self._one(query.limit(1)) is not None

    async def kernel(self, artifact_id: str) -> pb.Kernel | None:
        table = schema.kernels
        row = await self._one(select(table.c.record).where(table.c.artifact_id == artifact_id))
        return None if row is None else pb.Kernel.FromString(row.record)

    async def manifest(self, artifact_id: str) -> ArtifactManifest:
        table = schema.kernels
        row = await self._one(select(table.c.manifest).where(table.c.artifact_id == artifact_id))
        assert row is not None, "asked for after its kernel was found, and nothing is deleted"
        return ArtifactManifest.FromString(row.manifest)

    async def files(self, artifact_id: str) -> dict[str, FileEntry]:
        table = schema.kernel_files
        query = select(table).where(table.c.artifact_id == artifact_id).order_by(table.c.file)
        return {row.file: FileEntry(row.digest, row.size_bytes) for row in await self._all(query)}

    async def referenced(self, digests: Collection[str]) -> set[str]:
        """Those of `digests` that some kernel's file has."""
        column = schema.kernel_files.c.digest
        return {row[0] for row in await self._all(select(column).where(column.in_(digests)).distinct())}

    async def changed_kernels(self, key: InterfaceKey, after: int, limit: int) -> list[tuple[int, Candidate]]:
        """Kernels for an interface that changed after a revision, in order, with the revision of it."""
        table = schema.kernels
        query = select(  # in the order `_candidate` reads, which is faster by place than by name
            table.c.changed,
            table.c.artifact_id,
            table.c.status,
            table.c.target,
            schema.blueprints.c.revision,
            table.c.parameter_count,
            table.c.forward_us_p50,
            table.c.peak_bytes,
            table.c.interest,
            table.c.risk,
            table.c.tags_json,
        ).join_from(table, schema.blueprints, schema.blueprints.c.blueprint_id == table.c.blueprint_id)
        query = query.where(
            table.c.kind == key.kind,
            table.c.channels == key.channels,
            table.c.element_type == key.element_type,
            table.c.causal == key.causal,
            table.c.changed > after,
        )
        rows: Sequence[Sequence[Any]] = await self._all(query.order_by(table.c.changed).limit(limit))
        return [(row[0], _candidate([*row[1:10], _tags(row[10])])) for row in rows]

    async def kernel_records(self, artifact_ids: Collection[str]) -> dict[str, bytes]:
        """Records, unparsed, of those kernels that are here."""
        found = await self._connection.execute(_RECORDS, {"artifact_ids": list(artifact_ids)})
        rows: Sequence[Any] = found.all()
        return dict(rows)

    async def kernels(self, status: int, blueprint_id: str, before: int, limit: int) -> list[tuple[int, pb.Kernel]]:
        """Newest first, created before revision `before` (0: from the newest), with that revision."""
        table = schema.kernels
        query = select(table.c.revision, table.c.record).order_by(table.c.revision.desc()).limit(limit)
        if before:
            query = query.where(table.c.revision < before)
        if blueprint_id:
            query = query.where(table.c.blueprint_id == blueprint_id)
        if status:
            query = query.where(table.c.status == status)
        else:
            query = query.where(table.c.status != pb.KERNEL_STATUS_ARCHIVED)
        return [(row.revision, pb.Kernel.FromString(row.record)) for row in await self._all(query)]

    async def alias(self, alias: str) -> str:
        """What it points at; empty for one nobody set."""
        table = schema.aliases
        row = await self._one(select(table.c.target_name).where(table.c.alias == alias))
        return "" if row is None else str(row.target_name)

    async def aliases(self, after: str, limit: int) -> list[tuple[str, str]]:
        """By name, after one, each with what it points at."""
        table = schema.aliases
        query = select(table).where(table.c.alias > after).order_by(table.c.alias).limit(limit)
        return [(row.alias, row.target_name) for row in await self._all(query)]

    async def uses(self) -> dict[str, tuple[int, int]]:
        """Of each kernel that was used: how often, and when last, in nanoseconds since 1970."""
        table = schema.kernel_uses
        return {row.artifact_id: (row.uses, row.last_used_ns) for row in await self._all(select(table))}

    async def edges(self) -> dict[int, set[int]]:
        """The whole lineage: a child's revision, those of its parents."""
        found: dict[int, set[int]] = {}
        for row in await self._all(select(schema.lineage)):
            found.setdefault(row.child, set()).add(row.parent)
        return found

    async def rows(self, table_name: str) -> AsyncIterator[dict[str, Any]]:
        """Every row of a table, by its key."""
        table = schema.metadata.tables[table_name]
        (key,) = table.primary_key
        query, last = select(table).order_by(key).limit(_IN), ""
        while found := await self._all(query.where(key > last)):
            for row in found:
                yield dict(row._mapping)
            last = found[-1]._mapping[key.name]

    async def report(self, name: str) -> StoredReport | None:
        table = schema.reports
        row = await self._one(select(table).where(table.c.name == name))
        return None if row is None else StoredReport(row.name, row.artifact_id, row.body)

    async def reports(self, artifact_id: str, before: int, limit: int) -> list[tuple[int, StoredReport]]:
        """Newest first, stored before revision `before` (0: from the newest), with that revision."""
        table = schema.reports
        query = select(table).order_by(table.c.revision.desc()).limit(limit)
        if artifact_id:
            query = query.where(table.c.artifact_id == artifact_id)
        if before:
            query = query.where(table.c.revision < before)
        return [(row.revision, StoredReport(row.name, row.artifact_id, row.body)) for row in await self._all(query)]

    async def entries(self, after: int, limit: int, resource_name: str = "") -> list[Entry]:
        """Oldest first, after a revision."""
        table = schema.ledger
        query = select(table).where(table.c.revision > after).order_by(table.c.revision).limit(limit)
        if resource_name:
            query = query.where(table.c.resource_name == resource_name)
        return [
            Entry(row.revision, row.time_ns, row.action, row.resource_name, row.detail_json, row.digest)
            for row in await self._all(query)
        ]

    async def waiting_events(self, limit: int) -> list[OutboxEvent]:
        """The oldest events that were not marked as published."""
        table = schema.outbox
        query = select(table).where(table.c.published.is_(False)).order_by(table.c.sequence).limit(limit)
        return [
            OutboxEvent(row.sequence, row.event_id, row.time_ns, Event(row.payload_type, row.payload))
            for row in await self._all(query)
        ]

    async def _all(self, query: Select[Any]) -> Sequence[Row[Any]]:
        rows: Sequence[Row[Any]] = (await self._connection.execute(query)).all()
        return rows

    async def _one(self, query: Select[Any]) -> Row[Any] | None:
        row: Row[Any] | None = (await self._connection.execute(query)).first()
        return row


def _edge(down: bool) -> tuple[Column[int], Column[int]]:
    """The lineage's columns: where a step starts and where it leads."""
    columns = schema.lineage.c
    return (columns.parent, columns.child) if down else (columns.child, columns.parent)


def _candidate(cells: list[Any]) -> Candidate:
    return Candidate(*cells)


@lru_cache(maxsize=4096)
def _tags(tags_json: str) -> frozenset[str]:
    """Kernels share few sets of tags, and parsing one costs more than the rest of its row."""
    return frozenset(json.loads(tags_json))
