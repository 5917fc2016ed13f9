"""Bring the tables of an earlier schema version up to today's, in the transaction that opens the store.

Version 2 added what a search and a lineage are answered from. All of it follows from the records and the ledger.
"""

from google.protobuf.message import DecodeError
from sqlalchemy import Connection, func, insert, select, text, update

from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Corrupt
from esper.urza import schema

_ADDED = {"changed": "BIGINT", "interest": "DOUBLE PRECISION", "risk": "DOUBLE PRECISION"}  # to kernels


def upgrade(connection: Connection, version: int) -> bool:
    """Whether tables of `version` could be brought up to `schema.SCHEMA_VERSION`; if not, nothing has changed.

    Raises Corrupt for a record that cannot be read; the caller's transaction is undone then.
    """
    if (version, schema.SCHEMA_VERSION) != (1, 2):
        return False
    for column, kind in _ADDED.items():
        connection.execute(text(f"ALTER TABLE kernels ADD COLUMN {column} {kind} NOT NULL DEFAULT 0"))
    connection.execute(text("DROP INDEX kernels_by_interface"))  # its columns are others now
    schema.metadata.create_all(connection)
    for index in schema.kernels.indexes:
        index.create(connection, checkfirst=True)
    try:
        _fill_kernels(connection)
        _fill_lineage(connection)
    except DecodeError as error:
        raise Corrupt(f"the library holds a record that cannot be read ({error}); restore it from a backup") from error
    connection.execute(update(schema.meta).values(schema_version=schema.SCHEMA_VERSION))
    return True


def _fill_kernels(connection: Connection) -> None:
    """A kernel's latest change is its latest entry in the ledger."""
    entries, kernels = schema.ledger.c, schema.kernels
    latest = select(func.max(entries.revision)).where(entries.resource_name == "kernels/" + kernels.c.artifact_id)
    connection.execute(update(kernels).values(changed=func.coalesce(latest.scalar_subquery(), kernels.c.revision)))
    for row in connection.execute(select(kernels.c.artifact_id, kernels.c.record)).all():
        record = pb.Kernel.FromString(row.record)
        measured = {"interest": record.interest, "risk": record.risk}
        connection.execute(update(kernels).where(kernels.c.artifact_id == row.artifact_id).values(**measured))


def _fill_lineage(connection: Connection) -> None:
    rows = connection.execute(select(schema.blueprints.c.revision, schema.blueprints.c.record)).all()
    records = [(row.revision, pb.Blueprint.FromString(row.record)) for row in rows]
    revision_of = {record.blueprint_id: revision for revision, record in records}
    pairs = [
        {"child": revision, "parent": revision_of[parent]}
        for revision, record in records
        for parent in sorted(set(record.parent_ids))
    ]
    if pairs:
        connection.execute(insert(schema.lineage), pairs)
