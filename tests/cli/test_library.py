"""`esper library` against a library that is served: what people read, and what a wrong name gets."""

import asyncio
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import control_pb2, execution_pb2_grpc, telemetry_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.api.urza.v1 import library_pb2_grpc as pb_grpc
from esper.kasmina.service import ExecutionServicer, SeedBoard
from esper.rpc.server import Server
from esper.runtime.home import Home
from esper.urza.service import LibraryServicer
from tests.urza.fakes import add_blueprint, add_kernel, graph, identify, open_library, promotion

PARENT, CHILD = identify(graph(1)), identify(graph(2))


def board() -> SeedBoard:
    """That of a run "live" with one seed."""
    made = SeedBoard()
    seed = telemetry_pb2.SeedStatus(seed=seed_pb2.SeedRef(run_id="live", site="conv1"))
    made.show("live", 1, [seed], over=False)
    return made


@pytest.fixture
def served(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A run; two blueprints, one derived from the other; a promoted and a quarantined kernel, an alias. Ids by name."""
    ready, done, ids = threading.Event(), threading.Event(), dict[str, str]()

    async def keep(command: control_pb2.ControlCommand) -> None:
        ids["germinated"] = command.germinate.assignments[0].artifact_id

    async def serve() -> None:
        library = await open_library(tmp_path)
        await add_blueprint(library, 1)
        await add_blueprint(library, 2, parent_ids=[PARENT])
        ids["good"], ids["bad"] = await add_kernel(library, 1), await add_kernel(library, 2)
        await library.set_kernel_status(promotion(ids["good"], tags=["fast"], forward_us_p50=2.5))
        doubt = pb.SetKernelStatusRequest(artifact_id=ids["bad"], status=pb.KERNEL_STATUS_QUARANTINED, reason="odd")
        await library.set_kernel_status(doubt)
        await library.set_alias(pb.SetAliasRequest(alias="best/one", target_name=f"kernels/{ids['good']}"))
        server = Server(tokens=None)
        server.mount(pb_grpc.add_LibraryServiceServicer_to_server, LibraryServicer(library))
        server.mount(execution_pb2_grpc.add_ExecutionServiceServicer_to_server, ExecutionServicer(board(), keep))
        port = await server.start()
        home = tmp_path / ".esper"
        home.mkdir()
        (home / "token").write_text("t")
        contact: dict[str, Any] = {"address": f"127.0.0.1:{port}", "token_file": str(home / "token"), "broker": ""}
        (home / "runtime.json").write_text(json.dumps(contact | {"pid": os.getpid(), "version": "0"}))
        ready.set()
        await asyncio.to_thread(done.wait)
        await server.stop(0)
        await library.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(20)
    with Home(tmp_path / ".esper").held():
        yield ids
    done.set()
    thread.join()


def test_every_verb_says_what_there_is(served, esper) -> None:
    good, bad = served["good"], served["bad"]

    def out(*arguments: str) -> str:
        said = esper("library", *arguments)
        assert (said.status, said.err) == (0, ""), said
        return said.out

    first, *rows = out("list").splitlines()
    assert first.split() == ["blueprint", "status", "title", "family", "author"]
    assert [row.split()[:2] for row in rows] == [[CHILD[:12], "UNVALIDATED"], [PARENT[:12], "UNVALIDATED"]]
    assert "no blueprint" in out("list", "--family", "norm")
    assert bad[:12] in (listed := out("list", "--status", "quarantined")) and good[:12] not in listed
    assert "map2d 8 float32" in listed
    found = out("search", "map2d", "8", "--prefer", "fast", "--descends-from", PARENT[:8])
    assert good[:12] in found and "1 of 1 preferred tags (fast); forward 2.5 us" in found
    assert "no kernel" in out("search", "map2d", "8", "--ancestor-of", PARENT[:8], "--exclude", "fast")
    assert "none of the kernels in question (1) has a measured risk; search without max_risk" in out(
        "search", "map2d", "8", "--max-risk", "0.5"
    )
    assert f"kernel      {good}" in out("show", "best/one")
    assert out("show", good[:9]) == out("show", f"kernels/{good}") == out("show", "best/one")
    shown = out("show", CHILD[:12])
    assert f"parents     {PARENT[:12]}" in shown and bad[:12] in shown
    assert out("lineage", CHILD[:12]).splitlines()[1].split()[:2] == ["1", PARENT[:12]]
    assert out("lineage", PARENT[:12], "--descendants").splitlines()[1].split()[:2] == ["1", CHILD[:12]]
    assert out("lineage", CHILD, "--common", PARENT, "--depth", "1").splitlines()[1].split()[1] == PARENT[:12]
    assert out("lineage", PARENT[:12]).strip() == "none"
    assert f"best/one  kernels/{good}" in out("aliases")
    assert "0 of 2 kernels would be archived; --apply does it; 1 protected" in out("curate")
    assert "0 of 2 kernels archived" in out("curate", "--apply", "--protect", "best/one")
    assert "7 ledger entries, 5 rows and 3 blobs are what the ledger says" in out("verify")
    assert "0 blobs" in out("verify", "--no-blobs")


def test_statuses_and_aliases_can_be_changed(served, esper) -> None:
    bad = served["bad"]
    name = f"kernels/{bad}"
    said = esper("library", "move", name, "PENDING_BENCHMARKING", "--reason", "its files are mended")
    assert (said.status, said.out) == (0, f"{name} is PENDING_BENCHMARKING now\n")
    assert "PENDING_BENCHMARKING: its files are mended" in esper("library", "show", bad[:12]).out
    said = esper("library", "move", CHILD[:9], "archived", "--reason", "out of use")
    assert (said.status, said.out) == (0, f"blueprints/{CHILD} is ARCHIVED now\n")
    said = esper("library", "move", CHILD, "unvalidated", "--reason", "wanted again")
    assert (said.status, said.out) == (0, f"blueprints/{CHILD} is UNVALIDATED now\n")
    for target, words in ((bad[:9], f"kernels/{bad}"), (CHILD, f"blueprints/{CHILD}; before, at kernels/{bad}")):
        assert esper("library", "alias", "my/own", target).out == f"my/own points at {words}\n"
    assert esper("library", "alias", "my/own", "my/own").out == f"my/own points at blueprints/{CHILD}\n"
    assert f"my/own    blueprints/{CHILD}" in esper("library", "aliases").out


def test_a_seed_germinates_with_the_digits_that_tables_print_or_with_an_alias(served, esper) -> None:
    for name in (served["good"][:12], served["good"], "best/one"):
        served.pop("germinated", None)
        said = esper("seed", "germinate", "live", "conv1/0", name)
        assert said.status == 0 and served["germinated"] == served["good"], said
    for name, words in ((PARENT[:12], ("is a blueprint", "esper library show")), ("conv3", ("six digits or more",))):
        said = esper("seed", "germinate", "live", "conv1/0", name)
        assert said.status == 1 and all(word in said.err for word in words), said


def test_what_is_wrong_is_named_and_ends_with_status_1(served, esper, tmp_path) -> None:
    for arguments, words in (
        (("show", "nothing"), ("nothing", "no such alias", "esper library alias nothing NAME")),
        (("show", "conv3"), ("six digits or more", "esper blueprint show conv3")),
        (("show", PARENT[:5]), ("six digits or more",)),
        (("search", "map2d", "8", "--limit", "5000"), ("limit must be", "1000", "got 5000")),
        (("move", served["good"], "pending_benchmarking", "--reason", "r"), ("kernel is VALIDATED and cannot become",)),
        (("move", served["bad"], "compiling", "--reason", "r"), ("cannot be COMPILING; statuses are PENDING_",)),
        (("move", CHILD, "validated", "--reason", "r"), ("blueprints/", "VALIDATED")),
        (("move", served["bad"], "archived", "--reason", ""), ("reason",)),
        (("alias", "Best", PARENT), ("alias",)),
        (("alias", "best/two", "nothing"), ("nothing", "no such alias")),
        (("show", "abcdef0"), ("abcdef0", "no alias, blueprint or kernel")),
        (("lineage", served["good"][:12]), ("is a kernel",)),
        (("lineage", PARENT, "--descendants", "--common", CHILD), ("only ancestors",)),
        (("curate", "--protect", PARENT), ("--protect takes kernels",)),
        (("curate", "--idle-days", "-1"), ("--idle-days must be 0 to 36500, got -1",)),
        (("curate", "--idle-days", "99999999999"), ("--idle-days must be 0 to 36500, got 99999999999",)),
        (("curate", "--workhorse-uses", str(2**64)), (f"--workhorse-uses must be 0 to {2**63 - 1}, got {2**64}",)),
        (("curate", "--max-total-bytes", str(2**64)), (f"--max-total-bytes must be 0 to {2**63 - 1}",)),
        (("lineage", PARENT, "--depth", str(2**32)), ("--depth must be 0 to 1000000",)),
        (("search", "vector", "8", "--limit", str(2**32)), ("--limit must be 0 to 1000",)),
        (("search", "vector", str(2**32)), ("channels must be 0 to 1048576",)),
        (("search", "vector", "8", "--max-parameters", str(2**64)), ("--max-parameters must be 0 to",)),
        (("list", "--limit", "0"), ("--limit must be 1 to 1000",)),
        (("search", "map2d", "8", "--max-risk", "2"), ("max_risk", "got 2.0")),
    ):
        said = esper("library", *arguments)
        assert said.status == 1 and said.out == "" and "Traceback" not in said.err, said
        assert all(word in said.err for word in words), said.err
    with sqlite3.connect(tmp_path / "library.db") as database:
        database.execute("UPDATE ledger SET time_ns = 1 WHERE revision = 2")
    said = esper("library", "verify")
    assert said.status == 1 and "ledger: revision 2 has digest" in said.err
