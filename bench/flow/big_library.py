"""A library of many rows for the benches: what the store's writer would have written, in fewer statements.

Every blueprint and kernel has its row, its lineage and its entry of the ledger's chain, each at a
revision of its own, made by the writer's own functions. Left out are files, remembered requests and
events, which a search does not read. It is the library of many runs: of a hundred blueprints Karn made
all but one, which somebody put in; each has the graph of a template.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Table, insert, select, update

from esper.api.common.v1 import interface_pb2
from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.api.common.v1.resource_pb2 import TARGET_CPU
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.codec import write_graph
from esper.karn.templates import TEMPLATES
from esper.urza import schema
from esper.urza.codec import read_interface
from esper.urza.ledger import Entry, Head, append
from esper.urza.store import Store
from esper.urza.writer import Writer, blueprint_row, kernel_row

TAGS = tuple(f"{figure}_p{percent}" for figure in ("speed", "memory", "size", "gain") for percent in (10, 25, 50, 90))
CROWDED = interface_pb2.Interface(
    kind=interface_pb2.TENSOR_KIND_VECTOR, channels=64, element_type=interface_pb2.ELEMENT_TYPE_FLOAT32
)
PER_INTERFACE = 200
MANIFEST = ArtifactManifest(body=b"{}" * 1_000)
GRAPHS = tuple(write_graph(template.graph) for template in TEMPLATES.values())
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


async def go_on(store: Store, number: int, interface: interface_pb2.Interface) -> None:
    """What happens between two questions: a blueprint comes, and a promoted kernel for `interface` is judged again."""

    async def change(tx: Writer) -> None:
        await _insert(tx, schema.blueprints, [blueprint_row(_blueprint(number), tx.next_revision)])
        await _record(tx, "blueprint.create", [f"blueprints/{blueprint_id(number)}"])
        table, key = schema.kernels.c, read_interface(interface)
        query = select(table.artifact_id).where(
            table.kind == key.kind,
            table.channels == key.channels,
            table.element_type == key.element_type,
            table.causal == key.causal,
            table.target == TARGET_CPU,
        )
        kernel = await tx.kernel((await tx._connection.execute(query.order_by(table.changed).limit(1))).scalar_one())
        assert kernel is not None
        kernel.interest = number % 100 / 100
        await tx.update_kernel(kernel, MANIFEST)
        await _record(tx, "kernel.status", [f"kernels/{kernel.artifact_id}"])

    await store.write(change)


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
        rows.append(blueprint_row(_blueprint(number, parents), revision))
        edges += [{"child": revision, "parent": revision - number + parent} for parent in parents]
    await _insert(tx, schema.blueprints, rows)
    await _insert(tx, schema.lineage, edges)
    await _record(tx, "blueprint.create", [f"blueprints/{row['blueprint_id']}" for row in rows])


def _blueprint(number: int, parents: Sequence[int] = ()) -> pb.Blueprint:
    return pb.Blueprint(
        blueprint_id=blueprint_id(number),
        graph=GRAPHS[number % len(GRAPHS)],
        title=f"karn_{number}",
        family="convolution",
        status=pb.BLUEPRINT_STATUS_VALIDATED,
        author="karn" if number % 100 else "bench",
        parent_ids=[blueprint_id(parent) for parent in parents],
    )


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
