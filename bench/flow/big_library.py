"""A library of many rows for the benches: what the store's writer would have written, in fewer statements.

Every blueprint and kernel has its row, its lineage and its entry of the ledger's chain, each at a
revision of its own, made by the writer's own functions. Left out are files, remembered requests and
events, which a search does not read.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Table, insert, update

from esper.api.common.v1 import interface_pb2
from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.api.urza.v1 import library_pb2 as pb
from esper.urza import schema
from esper.urza.ledger import Entry, Head, append
from esper.urza.store import Store
from esper.urza.writer import Writer, blueprint_row, kernel_row

TAGS = tuple(f"{figure}_p{percent}" for figure in ("speed", "memory", "size", "gain") for percent in (10, 25, 50, 90))
CROWDED = interface_pb2.Interface(
    kind=interface_pb2.TENSOR_KIND_VECTOR, channels=64, element_type=interface_pb2.ELEMENT_TYPE_FLOAT32
)
PER_INTERFACE = 200
MANIFEST = ArtifactManifest(body=b"{}" * 1_000)
T = TypeVar("T")

_BATCH = 2_000
_RECENT = 1_000  # a blueprint's parents are among so many before it


def spread(number: int, kernels: int) -> interface_pb2.Interface:
    """One of the interfaces with about PER_INTERFACE kernels each."""
    return interface_pb2.Interface(
        kind=interface_pb2.TENSOR_KIND_MAP2D,
        channels=1 + number % max(1, kernels // PER_INTERFACE),
        element_type=interface_pb2.ELEMENT_TYPE_FLOAT32,
    )


def blueprint_id(number: int) -> str:
    return f"{number:064x}"


async def fill(store: Store, count: int) -> None:
    """Add `count` blueprints, `count` kernels spread over interfaces, and `count` at CROWDED."""
    draw = random.Random(7)
    for batch in _batches(range(count)):
        await store.write(lambda tx, batch=batch: _add_blueprints(tx, batch, draw))  # type: ignore[misc]
    for batch in _batches(_kernels(count, draw)):
        await store.write(lambda tx, batch=batch: _add_kernels(tx, batch))  # type: ignore[misc]
    await store.verify_ledger()


def _batches(whole: Iterable[T]) -> Iterator[tuple[T, ...]]:
    rest = iter(whole)
    while batch := tuple(islice(rest, _BATCH)):
        yield batch


def _kernels(count: int, draw: random.Random) -> Iterator[pb.Kernel]:
    for number in range(2 * count):
        yield pb.Kernel(
            artifact_id=f"{draw.getrandbits(256):064x}",
            blueprint_id=blueprint_id(number % count),
            interface=spread(number, count) if number < count else CROWDED,
            target=draw.choice((1, 2, 3)),
            pipeline="standard",
            status=pb.KERNEL_STATUS_VALIDATED,
            parameter_count=draw.randrange(1, 10**6),
            forward_us_p50=draw.lognormvariate(4, 1),
            peak_bytes=draw.randrange(1, 10**8),
            interest=draw.random(),
            risk=draw.random(),
            tags=draw.sample(TAGS, 5),
            title=f"blueprint {number % count}",
            family="convolution",
        )


async def _add_blueprints(tx: Writer, numbers: tuple[int, ...], draw: random.Random) -> None:
    rows, edges, first = [], [], tx.next_revision
    for revision, number in enumerate(numbers, first):
        older = range(max(0, number - _RECENT), number)
        parents = sorted(draw.sample(older, min(2, len(older))))
        blueprint = pb.Blueprint(
            blueprint_id=blueprint_id(number),
            title=f"blueprint {number}",
            family="convolution",
            status=pb.BLUEPRINT_STATUS_VALIDATED,
            author="bench",
            parent_ids=[blueprint_id(parent) for parent in parents],
        )
        rows.append(blueprint_row(blueprint, revision))
        edges += [{"child": revision, "parent": revision - number + parent} for parent in parents]
    await _insert(tx, schema.blueprints, rows)
    await _insert(tx, schema.lineage, edges)
    await _record(tx, "blueprint.create", [f"blueprints/{row['blueprint_id']}" for row in rows])


async def _add_kernels(tx: Writer, kernels: tuple[pb.Kernel, ...]) -> None:
    rows = [kernel_row(kernel, MANIFEST, revision) for revision, kernel in enumerate(kernels, tx.next_revision)]
    await _insert(tx, schema.kernels, rows)
    await _record(tx, "kernel.create", [f"kernels/{kernel.artifact_id}" for kernel in kernels])


async def _record(tx: Writer, action: str, names: list[str]) -> None:
    """`Writer.record_change` for many, with one statement."""
    head, entries = tx._head, list[dict[str, Any]]()
    for name in names:
        entry = append(head, time_ns=0, action=action, resource_name=name, detail={})
        head = Head(entry.revision, entry.digest)
        entries.append({field: getattr(entry, field) for field in Entry.__slots__})
    await _insert(tx, schema.ledger, entries)
    await tx._connection.execute(update(schema.meta).values(revision=head.revision, digest=head.digest))
    tx._head = head


async def _insert(tx: Writer, table: Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        await tx._connection.execute(insert(table), rows)
