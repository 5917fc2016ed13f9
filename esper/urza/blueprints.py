"""What a transaction does to blueprints: add one, move its status, list those that fit."""

from collections.abc import Callable

from esper.api.common.v1 import interface_pb2
from esper.api.common.v1.blueprint_pb2 import Graph
from esper.api.common.v1.resource_pb2 import ReplyHeader
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import InvalidRequest, NotFound, PreconditionFailed
from esper.urza import codec
from esper.urza.pages import Pages, listing, size_of
from esper.urza.reader import Reader
from esper.urza.statuses import BLUEPRINT
from esper.urza.writer import Writer

# Blueprints looked at per query when most of them may not fit the interface.
_SCAN_ROWS = 200
_REMEMBERED_FITS = 100_000


class Fits:
    """Whether a blueprint can be lowered for an interface, remembered: both are named by content."""

    def __init__(self, compatible: Callable[[Graph, interface_pb2.Interface], tuple[bool, str]]) -> None:
        self._compatible = compatible
        self._known: dict[tuple[str, codec.InterfaceKey], bool] = {}

    def __call__(self, blueprint: pb.Blueprint, key: codec.InterfaceKey) -> bool:
        pair = (blueprint.blueprint_id, key)
        if pair not in self._known:
            if len(self._known) >= _REMEMBERED_FITS:
                self._known.clear()
            self._known[pair] = self._compatible(blueprint.graph, codec.write_interface(key))[0]
        return self._known[pair]


async def need(reader: Reader, blueprint_id: str) -> pb.Blueprint:
    """Raises NotFound."""
    blueprint = await reader.blueprint(blueprint_id)
    if blueprint is None:
        raise NotFound(f"blueprints/{blueprint_id}: no such blueprint in this library")
    return blueprint


async def create(
    tx: Writer, request: pb.CreateBlueprintRequest, blueprint_id: str, now_ns: int
) -> pb.CreateBlueprintResponse:
    """Raises InvalidRequest naming the parents that are not here."""
    there = await tx.blueprint(blueprint_id)
    if there is not None:
        return pb.CreateBlueprintResponse(blueprint=there, existed=True)
    missing = await tx.missing_blueprints(request.parent_ids)
    if missing:
        why = f"not in this library: {', '.join(missing)}"
        raise InvalidRequest(f"parent_ids: {why}; create the parents first", {"parent_ids": why})
    blueprint = codec.new_blueprint(request, blueprint_id, now_ns)
    await tx.add_blueprint(blueprint)
    await tx.record_change(
        time_ns=now_ns,
        action="blueprint.create",
        resource_name=f"blueprints/{blueprint_id}",
        detail={
            "title": blueprint.title,
            "family": blueprint.family,
            "author": blueprint.author,
            "parent_ids": list(blueprint.parent_ids),
            "source": blueprint.source,
            "graph_sha256": codec.graph_digest(blueprint.graph),
        },
    )
    return pb.CreateBlueprintResponse(blueprint=blueprint)


async def set_status(tx: Writer, request: pb.SetBlueprintStatusRequest, now_ns: int) -> pb.SetBlueprintStatusResponse:
    """Raises NotFound and PreconditionFailed (the move, or VALIDATED without a promoted kernel)."""
    blueprint = await need(tx, request.blueprint_id)
    before = blueprint.status
    BLUEPRINT.move(before, request.status)
    if request.status == pb.BLUEPRINT_STATUS_VALIDATED:
        await _need_promoted_kernel(tx, request.blueprint_id)
    blueprint.status = request.status
    blueprint.status_reason = request.reason
    await tx.update_blueprint(blueprint)
    await tx.record_change(
        time_ns=now_ns,
        action="blueprint.status",
        resource_name=f"blueprints/{request.blueprint_id}",
        detail={"from": BLUEPRINT.name(before), "to": BLUEPRINT.name(request.status), "reason": request.reason},
    )
    return pb.SetBlueprintStatusResponse(blueprint=blueprint)


async def list_page(
    reader: Reader, request: pb.ListBlueprintsRequest, pages: Pages, fits: Fits
) -> pb.ListBlueprintsResponse:
    """Raises InvalidRequest for a page token of another list. New blueprints never move a later page."""
    key = codec.read_interface(request.interface) if request.HasField("interface") else None
    name = listing("blueprints", request.status, request.family, str(key))
    before = pages.start(request.page, name)
    found, more = await _scan(reader, request, before, size_of(request.page), lambda one: key is None or fits(one, key))
    reply = pb.ListBlueprintsResponse(header=ReplyHeader(revision=(await reader.head()).revision))
    reply.blueprints.extend(blueprint for _, blueprint in found)
    reply.page.CopyFrom(pages.reply(name, found[-1][0] if found else 0, more=more))
    return reply


async def _scan(
    reader: Reader,
    request: pb.ListBlueprintsRequest,
    before: int,
    size: int,
    wanted: Callable[[pb.Blueprint], bool],
) -> tuple[list[tuple[int, pb.Blueprint]], bool]:
    """The next `size` wanted blueprints with their revisions, and whether one more follows."""
    found: list[tuple[int, pb.Blueprint]] = []
    while rows := await reader.blueprints(request.status, request.family, before, max(_SCAN_ROWS, size + 1)):
        for revision, blueprint in rows:
            if not wanted(blueprint):
                continue
            if len(found) == size:
                return found, True
            found.append((revision, blueprint))
        before = rows[-1][0]
    return found, False


async def _need_promoted_kernel(reader: Reader, blueprint_id: str) -> None:
    if not await reader.has_kernel(blueprint_id, pb.KERNEL_STATUS_VALIDATED):
        raise PreconditionFailed(
            f"blueprints/{blueprint_id} has no kernel that is VALIDATED, so it cannot be either; promote a kernel first"
        )
