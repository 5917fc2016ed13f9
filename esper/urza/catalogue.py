"""What a transaction does to aliases and reports, and how the ledger is read page by page."""

import hashlib
import re

from esper.api.common.v1.resource_pb2 import PageReply, PageRequest, ReplyHeader
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Conflict, InvalidRequest, NotFound
from esper.urza import blueprints, codec, kernels
from esper.urza.pages import Pages, listing, size_of
from esper.urza.port import StoredReport
from esper.urza.reader import Reader
from esper.urza.writer import Writer

MAX_REPORT_BYTES = 4 << 20
_REPORT_NAME = re.compile(r"reports/[0-9a-f]{64}")
_TARGET_NAME = re.compile(r"(blueprints|kernels)/([0-9a-f]{64})")


async def set_alias(tx: Writer, request: pb.SetAliasRequest, now_ns: int) -> pb.SetAliasResponse:
    """Raises NotFound where the target is not here; pointing it where it points already is no change."""
    await _need_target(tx, request.target_name)
    previous = await tx.alias(request.alias)
    if previous != request.target_name:
        await tx.point_alias(request.alias, request.target_name, existed=bool(previous))
        await tx.record_change(
            time_ns=now_ns,
            action="alias.set",
            resource_name=f"aliases/{request.alias}",
            detail={"from": previous, "to": request.target_name},
        )
    return pb.SetAliasResponse(previous_target_name=previous)


async def get_alias(reader: Reader, request: pb.GetAliasRequest) -> pb.GetAliasResponse:
    """Raises NotFound."""
    target_name = await reader.alias(request.alias)
    if not target_name:
        raise NotFound(
            f"aliases/{request.alias}: no such alias in this library; set it: esper library alias {request.alias} NAME"
        )
    return pb.GetAliasResponse(header=ReplyHeader(revision=(await reader.head()).revision), target_name=target_name)


async def list_aliases(reader: Reader, request: pb.ListAliasesRequest, pages: Pages) -> pb.ListAliasesResponse:
    """By name. Raises InvalidRequest for a page token of another list."""
    name, size = listing("aliases"), size_of(request.page)
    found = await reader.aliases(pages.read_token(request.page, name) or "", size + 1)
    sent, more = found[:size], len(found) > size
    return pb.ListAliasesResponse(
        header=ReplyHeader(revision=(await reader.head()).revision),
        aliases=[pb.AliasEntry(alias=alias, target_name=target_name) for alias, target_name in sent],
        page=PageReply(next_token=pages.write_token(sent[-1][0], name) if more else ""),
    )


async def put_report(tx: Writer, report: StoredReport, now_ns: int) -> int:
    """The revision after it.

    Raises InvalidRequest (name, size), NotFound (its kernel), Conflict (the name has other bytes).
    """
    if not _REPORT_NAME.fullmatch(report.name):
        raise InvalidRequest(f"report name {report.name!r} is not reports/<64 hexadecimal digits>")
    if len(report.body) > MAX_REPORT_BYTES:
        raise InvalidRequest(f"{report.name} has {len(report.body)} bytes, at most {MAX_REPORT_BYTES}")
    await kernels.need(tx, report.artifact_id)
    there = await tx.report(report.name)
    if there == report:
        return tx.revision
    if there is not None:
        raise Conflict(f"{report.name} is stored already, with other bytes or for another kernel; take a new id")
    await tx.add_report(report)
    await tx.record_change(
        time_ns=now_ns,
        action="report.create",
        resource_name=report.name,
        detail={
            "artifact_id": report.artifact_id,
            "size_bytes": len(report.body),
            "sha256": hashlib.sha256(report.body).hexdigest(),
        },
    )
    return tx.revision


async def list_reports(
    reader: Reader, artifact_id: str, page: PageRequest, pages: Pages
) -> tuple[list[StoredReport], PageReply]:
    """Newest first. Raises InvalidRequest for a page token of another list."""
    name, size = listing("reports", artifact_id), size_of(page)
    rows = await reader.reports(artifact_id, pages.start(page, name), size + 1)
    sent = rows[:size]
    last = sent[-1][0] if sent else 0
    return [report for _, report in sent], pages.reply(name, last, more=len(rows) > size)


async def list_ledger(reader: Reader, request: pb.ListLedgerRequest, pages: Pages) -> pb.ListLedgerResponse:
    """Oldest first. Raises InvalidRequest for a page token of another list."""
    after = codec.stored_integer("after_revision", request.after_revision)
    name, size = listing("ledger", request.resource_name, after), size_of(request.page)
    entries = await reader.entries(pages.start(request.page, name) or after, size + 1, request.resource_name)
    sent = entries[:size]
    return pb.ListLedgerResponse(
        header=ReplyHeader(revision=(await reader.head()).revision),
        entries=[codec.write_entry(entry) for entry in sent],
        page=pages.reply(name, sent[-1].revision if sent else 0, more=len(entries) > size),
    )


async def _need_target(reader: Reader, target_name: str) -> None:
    match = _TARGET_NAME.fullmatch(target_name)
    if match is None:
        raise InvalidRequest(f"target_name {target_name!r} is not blueprints/<id> or kernels/<id>")
    if match[1] == "blueprints":
        await blueprints.need(reader, match[2])
    else:
        await kernels.need(reader, match[2])
