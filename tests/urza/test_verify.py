"""Whatever is done to what the library keeps, verification names it; and nothing is wrong with a library that works."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from esper.api.urza.v1 import library_pb2 as pb
from esper.urza.blobs import key_of
from esper.urza.library import CentralLibrary
from esper.urza.port import StoredReport

from .fakes import add_blueprint, add_kernel, files_of, graph, identify, promotion, sha256

REPORT = "reports/" + "a" * 64


async def fill(library: CentralLibrary) -> None:
    """Some of everything, in several statuses."""
    parent = await add_blueprint(library, 5)
    await add_blueprint(library, 6, parent_ids=[parent], source="arXiv:1")
    one, two, _ = [await add_kernel(library, number) for number in (1, 2, 3)]
    await library.set_kernel_status(promotion(one, tags=["fast"], forward_us_p50=2.5, interest=0.5, risk=0.25))
    await library.set_kernel_status(promotion(one, b"again", peak_bytes=7))
    gone = pb.SetKernelStatusRequest(artifact_id=two, status=pb.KERNEL_STATUS_ARCHIVED, reason="old")
    await library.set_kernel_status(gone)
    for target in (f"kernels/{two}", f"kernels/{one}"):
        await library.set_alias(pb.SetAliasRequest(alias="best", target_name=target))
    await library.put_report(StoredReport(REPORT, one, b"report"))
    request = pb.SetBlueprintStatusRequest(blueprint_id=parent, status=pb.BLUEPRINT_STATUS_INVALID, reason="no")
    await library.set_blueprint_status(request)


async def problems(library: CentralLibrary) -> list[str]:
    return list((await library.verify_library(pb.VerifyLibraryRequest())).problems)


async def test_all_is_well_with_a_library_that_was_only_used(library: CentralLibrary) -> None:
    await fill(library)
    reply = await library.verify_library(pb.VerifyLibraryRequest())
    assert list(reply.problems) == []
    assert reply.header.revision == reply.entries == (await library.verify_ledger()).revision
    assert (reply.rows, reply.blobs) == (5 + 3 + 1 + 1, 5)
    assert (await library.verify_library(pb.VerifyLibraryRequest(skip_blobs=True))).blobs == 0


KERNEL = "(SELECT artifact_id FROM kernels ORDER BY revision LIMIT 1)"
BLUEPRINT = f"'{identify(graph(5))}'"
TAMPERED = {
    "entry altered": ("UPDATE ledger SET time_ns = time_ns + 1 WHERE revision = 3", "revision 3 has digest"),
    "entry's detail": ("UPDATE ledger SET detail_json = '{}' WHERE revision = 12", "revision 12 has digest"),
    "blueprint's detail": ("UPDATE ledger SET detail_json = '{}' WHERE revision = 1", "revision 1 has digest"),
    "kernel's detail": ("UPDATE ledger SET detail_json = 'x' WHERE revision = 4", "revision 4 has digest"),
    "entry missing": ("DELETE FROM ledger WHERE revision = 4", "revision 4 is missing"),
    "last entry missing": ("DELETE FROM ledger WHERE revision = (SELECT max(revision) FROM ledger)", "it ends at"),
    "entries swapped": (
        "UPDATE ledger SET revision = -1 WHERE revision = 3;UPDATE ledger SET revision = 3 WHERE revision = 4;"
        "UPDATE ledger SET revision = 4 WHERE revision = -1",
        "revision 3 has digest",
    ),
    "head": ("UPDATE meta SET digest = replace(digest, substr(digest, 1, 1), 'x')", "the store is at"),
    "kernel missing": (f"DELETE FROM kernels WHERE artifact_id = {KERNEL}", "its row is missing"),
    "blueprint missing": (f"DELETE FROM blueprints WHERE blueprint_id = {BLUEPRINT}", "its row is missing"),
    "report missing": ("DELETE FROM reports", f"{REPORT}: the ledger has it"),
    "alias missing": ("DELETE FROM aliases", "aliases/best: the ledger has it"),
    "alias moved": ("UPDATE aliases SET target_name = 'kernels/x'", "aliases/best: points at kernels/x"),
    "alias made": ("INSERT INTO aliases VALUES ('x', 'kernels/x')", "aliases/x: a row that the ledger does not know"),
    "report altered": ("UPDATE reports SET body = x'726570706f74'", f"{REPORT}: its row is not what was stored"),
    "status": ("UPDATE kernels SET status = 5", "columns are not those of its record: status"),
    "figure": ("UPDATE kernels SET risk = 0.5", "columns are not those of its record: risk"),
    "interface": ("UPDATE kernels SET channels = 9", "columns are not those of its record: channels"),
    "latest change": ("UPDATE kernels SET changed = 1", "columns are not those of its record: changed"),
    "family": ("UPDATE blueprints SET family = 'x'", "columns are not those of its record: family"),
    "files": ("DELETE FROM kernel_files WHERE file = 'empty'", "its rows of files are not those of its body"),
    "lineage missing": ("DELETE FROM lineage", "its rows of the lineage are not its parents"),
    "lineage made": ("INSERT INTO lineage VALUES (1, 2)", "its rows of the lineage are not its parents"),
    "blueprint made": (
        "INSERT INTO blueprints SELECT 'x', 99, status, family, record FROM blueprints LIMIT 1",
        "blueprints/x: a row that the ledger does not know",
    ),
}


@pytest.mark.parametrize("kind", TAMPERED)
async def test_what_was_done_to_the_database_is_found(library: CentralLibrary, tmp_path: Path, kind: str) -> None:
    statement, said = TAMPERED[kind]
    await fill(library)
    with sqlite3.connect(tmp_path / "library.db") as database:
        database.executescript(statement)
    found = await problems(library)
    assert any(said in line for line in found), found


@pytest.mark.parametrize("column", ["kernels.record", "kernels.manifest", "blueprints.record", "reports.body"])
@pytest.mark.parametrize("step", [41, pytest.param(1, marks=pytest.mark.slow)])
async def test_any_flipped_bit_of_a_record_is_found(
    library: CentralLibrary, tmp_path: Path, column: str, step: int
) -> None:
    await fill(library)
    table, _, name = column.partition(".")
    database = sqlite3.connect(tmp_path / "library.db", isolation_level=None)
    key, value = database.execute(f"SELECT rowid, {name} FROM {table} ORDER BY revision LIMIT 1").fetchone()
    for place in range(0, len(value), step):
        flipped = bytearray(value)
        flipped[place] ^= 1 << place % 8
        database.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", (bytes(flipped), key))
        assert await problems(library), f"bit {place % 8} of byte {place}"
    database.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", (value, key))
    database.close()
    assert await problems(library) == []


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [_flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
async def test_a_blob_that_changed_or_went_is_found(
    library: CentralLibrary, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    await fill(library)
    digest = sha256(files_of(1)["weights.safetensors"])
    harm(tmp_path / "blobs" / key_of(digest))
    (found,) = await problems(library)
    assert found.startswith("kernels/") and digest in found
    assert list((await library.verify_library(pb.VerifyLibraryRequest(skip_blobs=True))).problems) == []
