"""Aliases, reports, and the ledger page by page."""

from dataclasses import replace

import pytest

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Conflict, InvalidRequest, NotFound
from esper.urza.catalogue import MAX_REPORT_BYTES
from esper.urza.library import CentralLibrary
from esper.urza.port import StoredReport

from .fakes import add_blueprint, add_kernel

ABSENT = "f" * 64


async def point(library: CentralLibrary, alias: str, target: str, request_id: str = "") -> pb.SetAliasResponse:
    return await library.set_alias(pb.SetAliasRequest(alias=alias, target_name=target, request_id=request_id))


async def test_an_alias_moves_and_says_where_it_was(library: CentralLibrary) -> None:
    blueprint, kernel = f"blueprints/{await add_blueprint(library, 1)}", f"kernels/{await add_kernel(library)}"
    assert (await point(library, "best/conv", blueprint)).previous_target_name == ""
    moved = await point(library, "best/conv", kernel)
    assert (moved.previous_target_name, moved.header.revision) == (blueprint, 5)
    got = await library.get_alias(pb.GetAliasRequest(alias="best/conv"))
    assert (got.target_name, got.header.revision) == (kernel, 5)
    assert (await point(library, "best/conv", kernel)).header.revision == 5, "pointing it where it points is no change"


async def test_an_alias_points_at_what_is_here(library: CentralLibrary) -> None:
    for target in (f"blueprints/{ABSENT}", f"kernels/{ABSENT}"):
        with pytest.raises(NotFound, match=target):
            await point(library, "best", target)
    with pytest.raises(InvalidRequest, match="is not blueprints/<id>"):
        await point(library, "best", "reports/1")
    with pytest.raises(NotFound, match="aliases/best"):
        await library.get_alias(pb.GetAliasRequest(alias="best"))


async def test_an_alias_is_set_once_per_request_id(library: CentralLibrary) -> None:
    one, two = [f"blueprints/{await add_blueprint(library, number)}" for number in (1, 2)]
    first = await point(library, "best", one, request_id="r")
    await point(library, "best", two)
    assert await point(library, "best", one, request_id="r") == first
    assert (await library.get_alias(pb.GetAliasRequest(alias="best"))).target_name == two
    with pytest.raises(Conflict):
        await point(library, "best", two, request_id="r")


def report(artifact_id: str, number: int = 0) -> StoredReport:
    return StoredReport(f"reports/{number:064x}", artifact_id, f"body {number}".encode())


async def test_a_report_is_kept_once(library: CentralLibrary) -> None:
    stored = report(await add_kernel(library))
    assert await library.put_report(stored) == 3
    assert await library.put_report(stored) == 3
    assert await library.get_report(stored.name) == stored
    with pytest.raises(Conflict, match=stored.name):
        await library.put_report(replace(stored, body=b"other"))
    with pytest.raises(NotFound, match="reports/nobody"):
        await library.get_report("reports/nobody")


async def test_a_report_that_does_not_fit_is_refused(library: CentralLibrary) -> None:
    stored = report(await add_kernel(library))
    with pytest.raises(NotFound, match=ABSENT):
        await library.put_report(replace(stored, artifact_id=ABSENT))
    with pytest.raises(InvalidRequest, match="64 hexadecimal digits"):
        await library.put_report(replace(stored, name="reports/../x"))
    with pytest.raises(InvalidRequest, match=f"at most {MAX_REPORT_BYTES}"):
        await library.put_report(replace(stored, body=b"x" * (MAX_REPORT_BYTES + 1)))


async def test_reports_are_paged_newest_first(library: CentralLibrary) -> None:
    one, two = await add_kernel(library, 1), await add_kernel(library, 2)
    for number in range(6):
        await library.put_report(report(one if number % 2 else two, number))
    first, page = await library.list_reports(one, PageRequest(size=2))
    await library.put_report(report(one, 9))
    second, end = await library.list_reports(one, PageRequest(size=2, token=page.next_token))
    assert [one.body for one in first + second] == [b"body 5", b"body 3", b"body 1"]
    assert end.next_token == ""
    everything, _ = await library.list_reports("", PageRequest())
    assert len(everything) == 7
    with pytest.raises(InvalidRequest, match="not issued for this list"):
        await library.list_reports(two, PageRequest(size=2, token=page.next_token))


async def test_the_ledger_is_paged_oldest_first(library: CentralLibrary) -> None:
    ids = [await add_blueprint(library, number) for number in range(5)]
    first = await library.list_ledger(pb.ListLedgerRequest(page=PageRequest(size=3)))
    await add_blueprint(library, 7)
    token = first.page.next_token
    second = await library.list_ledger(pb.ListLedgerRequest(page=PageRequest(size=3, token=token)))
    assert [entry.revision for entry in [*first.entries, *second.entries]] == [1, 2, 3, 4, 5, 6]
    assert second.page.next_token == ""
    assert second.header.revision == 6
    late = await library.list_ledger(pb.ListLedgerRequest(after_revision=2, page=PageRequest(size=3)))
    assert [entry.revision for entry in late.entries] == [3, 4, 5]
    page = PageRequest(size=3, token=late.page.next_token)
    last = await library.list_ledger(pb.ListLedgerRequest(after_revision=2, page=page))
    assert [entry.revision for entry in last.entries] == [6]
    with pytest.raises(InvalidRequest, match="not issued for this list"):
        await library.list_ledger(pb.ListLedgerRequest(after_revision=3, page=page))
    assert not (await library.list_ledger(pb.ListLedgerRequest(after_revision=6))).entries
    with pytest.raises(InvalidRequest, match="after_revision is"):
        await library.list_ledger(pb.ListLedgerRequest(after_revision=2**63))
    name = f"blueprints/{ids[2]}"
    only = await library.list_ledger(pb.ListLedgerRequest(resource_name=name))
    assert [(entry.revision, entry.resource_name) for entry in only.entries] == [(3, name)]
