"""A library that an earlier Esper wrote is opened with all that is in it."""

import sqlite3
from pathlib import Path

import pytest

from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Corrupt, PreconditionFailed
from esper.urza.library import CentralLibrary

from .fakes import open_library
from .test_verify import fill

# What version 2 added, taken back.
VERSION_1 = """
DROP INDEX kernels_by_interface; DROP INDEX kernels_by_status; DROP TABLE lineage; DROP TABLE kernel_uses;
ALTER TABLE kernels DROP COLUMN changed; ALTER TABLE kernels DROP COLUMN interest; ALTER TABLE kernels DROP COLUMN risk;
CREATE INDEX kernels_by_interface ON kernels (kind, channels, element_type, causal, status, target);
UPDATE meta SET schema_version = 1;
"""


async def older(folder: Path, change: str = VERSION_1) -> Path:
    """A filled library as `change` leaves its database, which is returned."""
    library = await open_library(folder)
    await fill(library)
    await library.close()
    (path,) = folder.rglob("*.db")
    with sqlite3.connect(path) as connection:
        connection.executescript(change)
    connection.close()
    return path


def indexes(path: Path) -> set[tuple[str, str]]:
    with sqlite3.connect(path) as connection:
        found = set(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type = 'index'"))
    connection.close()
    return found


async def test_a_library_of_version_1_is_brought_up_with_all_that_is_in_it(tmp_path: Path) -> None:
    for name in ("old", "fresh"):
        (tmp_path / name).mkdir()
    path = await older(tmp_path / "old")
    library: CentralLibrary = await open_library(tmp_path / "old")
    assert list((await library.verify_library(pb.VerifyLibraryRequest())).problems) == []
    await library.close()
    fresh = await open_library(tmp_path / "fresh")
    await fresh.close()
    (new,) = (tmp_path / "fresh").rglob("*.db")
    assert indexes(path) == indexes(new)
    again = await open_library(tmp_path / "old")  # and is then like any other
    assert list((await again.verify_library(pb.VerifyLibraryRequest())).problems) == []
    await again.close()


async def test_a_migration_that_fails_leaves_the_library_as_it_was(tmp_path: Path) -> None:
    path = await older(tmp_path, VERSION_1 + "UPDATE blueprints SET record = x'ff';")
    with pytest.raises(Corrupt, match="a record that cannot be read"):
        await open_library(tmp_path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT schema_version FROM meta").fetchall() == [(1,)]
        columns = {row[1] for row in connection.execute("PRAGMA table_info(kernels)")}
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'lineage'").fetchall() == []
    connection.close()
    assert "changed" not in columns


async def test_what_no_migration_knows_is_refused(tmp_path: Path) -> None:
    await older(tmp_path, "UPDATE meta SET schema_version = 3")
    with pytest.raises(PreconditionFailed, match="schema version 3, this Esper reads 2"):
        await open_library(tmp_path)
