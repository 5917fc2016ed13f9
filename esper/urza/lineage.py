"""What a blueprint was derived from, and what was derived from it.

Edges are stored by revision, and a parent's is lower than its child's: walked by revision,
an answer is in the order in which the blueprints came, and pages of it do not shift.
"""

from collections.abc import Mapping
from enum import Enum

from esper.api.common.v1.resource_pb2 import ReplyHeader
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import InvalidRequest, NotFound
from esper.urza.pages import Pages, listing, size_of
from esper.urza.reader import Reader


class Way(Enum):
    """Which way edges are walked."""

    ANCESTORS = pb.LINEAGE_DIRECTION_ANCESTORS
    DESCENDANTS = pb.LINEAGE_DIRECTION_DESCENDANTS


async def depths(reader: Reader, start: int, way: Way, max_depth: int) -> dict[int, int]:
    """Revisions within `max_depth` generations (0: all) of a start, each with the fewest; the start at 0."""
    found, edge, depth = {start: 0}, [start], 0
    while edge and (not max_depth or depth < max_depth):
        depth += 1
        edge = [one for one in await reader.kin(edge, down=way is Way.DESCENDANTS) if one not in found]
        found.update(dict.fromkeys(edge, depth))
    return found


async def get_page(reader: Reader, request: pb.GetLineageRequest, pages: Pages) -> pb.GetLineageResponse:
    """Raises NotFound, and InvalidRequest (a page token of another list, descendants in common)."""
    way = Way(request.direction or pb.LINEAGE_DIRECTION_ANCESTORS)
    name = listing("lineage", request.blueprint_id, way.value, request.max_depth, request.common_with_blueprint_id)
    size, after = size_of(request.page), pages.start(request.page, name)
    found = await _wanted(reader, request, way)
    down = way is Way.DESCENDANTS
    order = sorted(found, reverse=not down)
    ahead = [one for one in order if not after or (one > after if down else one < after)]
    sent = ahead[:size]
    return pb.GetLineageResponse(
        header=ReplyHeader(revision=(await reader.head()).revision),
        entries=[_entry(one, found[revision]) for revision, one in await reader.blueprints_at(sent, newest=not down)],
        page=pages.reply(name, sent[-1] if sent else 0, more=len(ahead) > size),
    )


async def _wanted(reader: Reader, request: pb.GetLineageRequest, way: Way) -> Mapping[int, int]:
    start = await start_of(reader, request.blueprint_id)
    found = await depths(reader, start, way, request.max_depth)
    if not request.common_with_blueprint_id:
        del found[start]
        return found
    if way is Way.DESCENDANTS:
        why = "only ancestors can be asked for in common"
        raise InvalidRequest(f"common_with_blueprint_id: {why}", {"common_with_blueprint_id": why})
    other = await depths(reader, await start_of(reader, request.common_with_blueprint_id), way, 0)
    return {revision: depth for revision, depth in found.items() if revision in other}


async def start_of(reader: Reader, blueprint_id: str) -> int:
    """The revision that created a blueprint. Raises NotFound."""
    revisions = await reader.revisions([blueprint_id])
    if not revisions:
        raise NotFound(f"blueprints/{blueprint_id}: no such blueprint in this library")
    return revisions[blueprint_id]


def _entry(blueprint: pb.Blueprint, depth: int) -> pb.LineageEntry:
    return pb.LineageEntry(
        blueprint_id=blueprint.blueprint_id,
        depth=depth,
        parent_ids=blueprint.parent_ids,
        title=blueprint.title,
        family=blueprint.family,
        author=blueprint.author,
        status=blueprint.status,
        source=blueprint.source,
    )
