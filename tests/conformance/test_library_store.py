"""The library's database: one suite over SQLite and PostgreSQL. Its blobs are in tests/urza/test_blobs.py.

PostgreSQL runs where its server programs and the psycopg driver are installed, in a
directory of its own; elsewhere it skips and says what to install.
"""

import asyncio
import importlib.util
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.api.common.v1.blueprint_pb2 import Graph, Node
from esper.api.common.v1.interface_pb2 import Interface
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.keys import TrustRoots
from esper.errors import Conflict, PreconditionFailed
from esper.urza.blobs import closing
from esper.urza.codec import FileEntry, InterfaceKey
from esper.urza.events import Event
from esper.urza.port import StoredReport
from esper.urza.reader import Reader
from esper.urza.service import open_library
from esper.urza.store import Store, StoreOptions
from esper.urza.writer import Writer
from tests.requirements import require

# ---- the database ---------------------------------------------------------------------------------------------


def _postgres_missing() -> str:
    """What keeps PostgreSQL from running here; empty if nothing does."""
    if importlib.util.find_spec("psycopg") is None:
        return "PostgreSQL driver absent: pip install 'psycopg[binary]'"
    if not _postgres_programs():
        return "PostgreSQL server absent: apt-get install postgresql"
    return ""


def _postgres_programs() -> Path | None:
    found = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found).parent if found else versions[-1].parent if versions else None


def _as_nobody(command: list[str]) -> list[str]:
    """initdb refuses root."""
    if os.getuid() != 0:
        return command
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server on a socket in a directory of its own."""
    require("postgres", _postgres_missing())
    programs = _postgres_programs()
    folder = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    folder.chmod(0o777)
    data, log = str(folder / "data"), str(folder / "log")
    run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run(_as_nobody([f"{programs}/initdb", "-D", data, "-A", "trust", "-U", "esper", "--no-sync"]), **run)
    listen = f"-c listen_addresses='' -c unix_socket_directories={folder}"
    subprocess.run(_as_nobody([f"{programs}/pg_ctl", "-D", data, "-l", log, "-w", "-o", listen, "start"]), **run)
    yield f"postgresql://esper@/postgres?host={folder}"
    subprocess.run(_as_nobody([f"{programs}/pg_ctl", "-D", data, "-m", "immediate", "stop"]), **run)
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/library.db"
        return
    server = request.getfixturevalue("postgres")
    await _fresh_schema(server)
    yield server


async def _fresh_schema(server: str) -> None:
    from sqlalchemy import text

    from esper.urza.engine import open_engine

    engine = open_engine(server, StoreOptions())
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    await engine.dispose()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await Store.open(url, StoreOptions(synchronous="OFF"))
    yield opened
    await opened.close()


ID = "{:064x}".format
SITE = Interface(kind=4, channels=8, element_type=1)
SITE_KEY = InterfaceKey(4, 8, 1, False)


async def ask(store: Store, what: str, *args: Any) -> Any:
    """One read in a transaction of its own."""
    return await store.read(lambda reader: getattr(reader, what)(*args))


async def tell(store: Store, what: str, *args: Any, **fields: Any) -> Any:
    """One write in a transaction of its own."""
    return await store.write(lambda tx: getattr(tx, what)(*args, **fields))


async def change(store: Store, number: int, *events: Event) -> int:
    async def write(tx: Writer) -> int:
        name = f"aliases/{number}"
        await tx.record_change(time_ns=number, action="alias.set", resource_name=name, detail={}, events=events)
        return tx.revision

    return await store.write(write)


def blueprint(number: int, **fields: Any) -> pb.Blueprint:
    given = {"status": pb.BLUEPRINT_STATUS_UNVALIDATED, "family": "convolution"} | fields
    return pb.Blueprint(blueprint_id=ID(number), title=f"title {number}", **given)


def kernel(number: int, **fields: Any) -> pb.Kernel:
    given = {"interface": SITE, "status": pb.KERNEL_STATUS_PENDING_BENCHMARKING, "target": 1, "tags": ["a", "b"]}
    return pb.Kernel(artifact_id=ID(number), **({"blueprint_id": ID(0)} | given | fields))


async def add(store: Store, *records: pb.Blueprint | pb.Kernel | StoredReport) -> None:
    async def write(tx: Writer) -> None:
        for record in records:
            if isinstance(record, pb.Blueprint):
                await tx.add_blueprint(record)
            elif isinstance(record, pb.Kernel):
                files = {"one": FileEntry(record.artifact_id, 1), "two": FileEntry(ID(999), 2)}
                await tx.add_kernel(record, ArtifactManifest(artifact_id=record.artifact_id, body=b"{}"), files)
            else:
                await tx.add_report(record)
            await tx.record_change(time_ns=1, action="test", resource_name="x", detail={})

    await store.write(write)


async def test_an_empty_store_is_at_revision_zero_and_stays_what_it_is(url: str) -> None:
    for expected in (0, 1):
        store = await Store.open(url)
        assert (await store.verify_ledger()).revision == expected
        await change(store, 1)
        await store.close()


async def test_a_change_is_one_revision_with_its_events(store: Store) -> None:
    assert await change(store, 1) == 1
    assert await change(store, 2, Event("t", b"p")) == 2
    assert [entry.revision for entry in await ask(store, "entries", 0, 10)] == [1, 2]
    assert [entry.revision for entry in await ask(store, "entries", 1, 10)] == [2]
    assert [entry.revision for entry in await ask(store, "entries", 0, 10, "aliases/1")] == [1]
    assert [one.event for one in await ask(store, "waiting_events", 10)] == [Event("t", b"p")]
    assert (await store.verify_ledger()).revision == 2


async def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    async def write(tx: Writer) -> None:
        await tx.add_blueprint(blueprint(1))
        await tx.record_change(time_ns=1, action="a", resource_name="r", detail={}, events=(Event("t", b""),))
        await tx.remember("id", ID(1), b"reply", 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(write)
    assert await ask(store, "blueprint", ID(1)) is None
    assert await ask(store, "waiting_events", 10) == []
    assert await ask(store, "earlier_reply", "id", ID(1)) is None
    assert (await store.verify_ledger()).revision == 0


async def test_a_reader_sees_one_state_throughout(store: Store) -> None:
    await change(store, 1)

    async def look(reader: Reader) -> None:
        before = await reader.head()
        await change(store, 2)
        assert await reader.head() == before
        assert len(await reader.entries(0, 10)) == 1

    await store.read(look)


async def test_eight_writers_make_one_chain(url: str) -> None:
    stores = [await Store.open(url, StoreOptions(synchronous="OFF")) for _ in range(8)]

    async def write(store: Store, writer: int) -> list[int]:
        return [await change(store, writer * 100 + number) for number in range(20)]

    taken = await asyncio.gather(*(write(store, number) for number, store in enumerate(stores)))
    assert sorted(revision for revisions in taken for revision in revisions) == list(range(1, 161))
    assert (await stores[0].verify_ledger()).revision == 160
    for store in stores:
        await store.close()


async def test_requests_are_remembered_until_forgotten(store: Store) -> None:
    await tell(store, "remember", "r1", ID(1), b"reply", time_ns=10)
    await tell(store, "remember", "", ID(2), b"anonymous", time_ns=10)
    assert await ask(store, "earlier_reply", "r1", ID(1)) == b"reply"
    assert await ask(store, "earlier_reply", "", ID(2)) is None
    with pytest.raises(Conflict, match="r1"):
        await ask(store, "earlier_reply", "r1", ID(2))
    assert await tell(store, "forget_before", 10) == (0, 0)
    assert await tell(store, "forget_before", 11) == (1, 0)


async def test_blueprints_are_listed_newest_first_by_status_and_family(store: Store) -> None:
    archived = blueprint(3, status=pb.BLUEPRINT_STATUS_ARCHIVED)
    await add(store, blueprint(1), blueprint(2, family="norm"), archived, blueprint(4))

    async def listed(status: int = 0, family: str = "", before: int = 0) -> list[int]:
        rows = await ask(store, "blueprints", status, family, before, 10)
        return [int(one.blueprint_id, 16) for _, one in rows]

    assert await listed() == [4, 2, 1]
    assert await listed(status=pb.BLUEPRINT_STATUS_ARCHIVED) == [3]
    assert await listed(family="convolution") == [4, 1]
    assert await listed(before=4) == [2, 1]
    assert await ask(store, "missing_blueprints", [ID(1), ID(7), ID(5)]) == [ID(5), ID(7)]


async def test_kernels_of_an_interface_are_read_as_they_change(store: Store) -> None:
    other = Interface(kind=4, channels=16, element_type=1)
    await add(store, blueprint(0), blueprint(9))
    await add(store, kernel(1), kernel(2, target=2), kernel(3, interface=other), kernel(4, blueprint_id=ID(9)))

    async def changed(after: int = 0, limit: int = 10, key: InterfaceKey = SITE_KEY) -> list[tuple[int, int]]:
        rows = await ask(store, "changed_kernels", key, after, limit)
        return [(revision, int(candidate.artifact_id, 16)) for revision, candidate in rows]

    assert await changed() == [(3, 1), (4, 2), (6, 4)]
    assert await changed(after=3, limit=1) == [(4, 2)]
    assert await changed(key=InterfaceKey(4, 16, 1, False)) == [(5, 3)]
    assert await changed(key=InterfaceKey(4, 8, 1, True)) == []
    moved = kernel(1, status=pb.KERNEL_STATUS_VALIDATED, tags=["c"], interest=0.5, risk=0.25)
    await tell(store, "update_kernel", moved, ArtifactManifest())
    assert await changed() == [(4, 2), (6, 4), (7, 1)]
    of_nine, candidate = [one for _, one in await ask(store, "changed_kernels", SITE_KEY, 5, 10)]
    assert of_nine.blueprint == 2
    assert (candidate.status, candidate.tags) == (pb.KERNEL_STATUS_VALIDATED, {"c"})
    assert (candidate.interest, candidate.risk, candidate.target, candidate.blueprint) == (0.5, 0.25, 1, 1)
    records = await ask(store, "kernel_records", [ID(1), ID(7)])
    assert [pb.Kernel.FromString(record) for record in records.values()] == [moved]
    assert await ask(store, "has_kernel", ID(0), pb.KERNEL_STATUS_VALIDATED)
    assert not await ask(store, "has_kernel", ID(9), pb.KERNEL_STATUS_VALIDATED)


async def test_kernels_are_listed_newest_first_by_status_and_blueprint(store: Store) -> None:
    archived = kernel(3, status=pb.KERNEL_STATUS_ARCHIVED)
    await add(store, kernel(1), kernel(2, blueprint_id=ID(9)), archived, kernel(4))

    async def listed(status: int = 0, blueprint_id: str = "", before: int = 0) -> list[int]:
        return [int(one.artifact_id, 16) for _, one in await ask(store, "kernels", status, blueprint_id, before, 10)]

    assert await listed() == [4, 2, 1]
    assert await listed(status=pb.KERNEL_STATUS_ARCHIVED) == [3]
    assert await listed(blueprint_id=ID(9)) == [2]
    assert await listed(before=4) == [2, 1]


async def test_a_lineage_is_walked_both_ways(store: Store) -> None:
    await add(store, blueprint(1), blueprint(2, parent_ids=[ID(1)]), blueprint(3, parent_ids=[ID(1), ID(2), ID(1)]))
    await add(store, blueprint(4), blueprint(5, parent_ids=[ID(3), ID(4)]))
    assert await ask(store, "revisions", [ID(5), ID(6)]) == {ID(5): 5}
    for down, start, kin in ((True, 1, [2, 3]), (False, 5, [3, 4])):
        assert sorted(await store.read(lambda r, s=start, d=down: r.kin([s], down=d))) == kin
    edges = [(2, 1), (3, 1), (3, 2), (5, 3), (5, 4)]
    assert sorted(await ask(store, "new_edges", 0, 10)) == edges
    assert sorted(await ask(store, "new_edges", 2, 1)) == edges[1:3]
    assert await ask(store, "new_edges", 5, 10) == []
    found = await store.read(lambda r: r.blueprints_at([2, 5], newest=True))
    assert [revision for revision, _ in found] == [5, 2]


async def test_files_tell_which_blobs_are_somebodys(store: Store) -> None:
    await add(store, kernel(1), kernel(2))
    assert await ask(store, "files", ID(1)) == {"one": FileEntry(ID(1), 1), "two": FileEntry(ID(999), 2)}
    assert await ask(store, "referenced", [ID(1), ID(999), ID(5)]) == {ID(1), ID(999)}


async def test_aliases_move(store: Store) -> None:
    await tell(store, "point_alias", "best", "kernels/a", existed=False)
    await tell(store, "point_alias", "best", "kernels/b", existed=True)
    assert await ask(store, "alias", "best") == "kernels/b"
    assert await ask(store, "alias", "worst") == ""


async def test_reports_are_listed_newest_first(store: Store) -> None:
    reports = [StoredReport(f"reports/{number}", ID(number % 2), bytes([number])) for number in range(4)]
    await add(store, *reports)
    assert await ask(store, "report", "reports/2") == reports[2]
    assert await ask(store, "report", "reports/9") is None
    assert [one.name for _, one in await ask(store, "reports", ID(1), 0, 10)] == ["reports/3", "reports/1"]
    assert [revision for revision, _ in await ask(store, "reports", "", 3, 10)] == [2, 1]


async def test_events_are_handed_out_in_order_once_marked(store: Store) -> None:
    for number in range(3):
        await change(store, number, Event(f"n{number}", b"p"), Event(f"m{number}", b"q"))
    seen: list[str] = []

    async def publish(event: Any) -> None:
        seen.append(event.event.payload_type)

    assert await store.drain(publish) == 6
    assert seen == ["n0", "m0", "n1", "m1", "n2", "m2"]
    assert await store.drain(publish) == 0


async def test_another_schema_version_is_refused_with_the_remedy(url: str) -> None:
    from sqlalchemy import text

    store = await Store.open(url)
    await store.write(lambda tx: tx._connection.execute(text("UPDATE meta SET schema_version = 7")))
    await store.close()
    with pytest.raises(PreconditionFailed, match=r"schema version 7, this Esper reads 2; run the Esper that wrote"):
        await Store.open(url)


# ---- the whole library on each database -----------------------------------------------------------------------


def chain(length: int) -> Graph:
    """`length` activations in a row: well formed, and another blueprint for each length."""
    names = ["input", *(f"n{number}" for number in range(length))]
    nodes = [Node(name=name, operator="relu", inputs=[source]) for source, name in pairwise(names)]
    return Graph(version=1, nodes=nodes, output=names[-1])


async def test_a_library_works_the_same_on_each(url: str, tmp_path: Path) -> None:
    library = await open_library(url, f"{tmp_path}/blobs", TrustRoots())

    async def create(length: int) -> pb.CreateBlueprintResponse:
        request = pb.CreateBlueprintRequest(request_id=str(length), graph=chain(length), title="t", author="a")
        return await library.create_blueprint(request)

    made = await asyncio.gather(*(create(length) for length in range(1, 9)))
    assert await asyncio.gather(*(create(length) for length in range(1, 9))) == made
    one = made[0].blueprint.blueprint_id
    with pytest.raises(PreconditionFailed, match="cannot become"):
        await library.set_blueprint_status(
            pb.SetBlueprintStatusRequest(blueprint_id=one, status=pb.BLUEPRINT_STATUS_UNVALIDATED, reason="r")
        )
    await library.set_alias(pb.SetAliasRequest(alias="best", target_name=f"blueprints/{one}"))
    listed = await library.list_blueprints(pb.ListBlueprintsRequest(interface=SITE))
    assert {blueprint.blueprint_id for blueprint in listed.blueprints} == {
        reply.blueprint.blueprint_id for reply in made
    }
    async with closing(library.watch_library(pb.WatchLibraryRequest())) as changes:
        assert [(await anext(changes)).header.revision for _ in range(9)] == list(range(1, 10))
    assert (await library.search_kernels(pb.SearchKernelsRequest(interface=SITE))).header.revision == 9
    assert (await library.verify_ledger()).revision == 9
    await library.close()
