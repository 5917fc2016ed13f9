"""Keep the archive in the library: every cell is an alias of the blueprint it has. There is no other store.

Worth is not kept: it is worked out again from what the grafts of a design did, which Simic keeps.
"""

import asyncio
import logging
from typing import Protocol

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.codec import read_graph
from esper.blueprint.interface import Kind
from esper.errors import InvalidRequest, NotFound
from esper.karn.archive import Archive, Candidate, Cell, Elite, candidate, cells, insert

log = logging.getLogger(__name__)

_PAGE = 1000
_BLUEPRINTS = "blueprints/"


class Shelf(Protocol):
    """What of the library is used here; see esper.urza.port."""

    async def get_blueprint(self, request: pb.GetBlueprintRequest, /) -> pb.GetBlueprintResponse: ...

    async def set_alias(self, request: pb.SetAliasRequest, /) -> pb.SetAliasResponse: ...

    async def list_aliases(self, request: pb.ListAliasesRequest, /) -> pb.ListAliasesResponse: ...


async def restore(shelf: Shelf) -> dict[Cell, Candidate]:
    """What each cell has, as the library says. An alias that was set to what cannot be there is passed over."""
    by_alias = {cell.alias: (cell, kind) for kind in Kind for cell in cells(kind)}
    found: dict[Cell, Candidate] = {}
    for alias, target in await _aliases(shelf):
        if alias not in by_alias:
            continue
        cell, kind = by_alias[alias]
        if not target.startswith(_BLUEPRINTS):
            log.warning("%s is an alias of %s, not of a blueprint; the cell counts as empty", alias, target)
            continue
        made, reason = await fetch(shelf, target.removeprefix(_BLUEPRINTS), kind)
        if made is not None and made.cell == cell:
            found[cell] = made
        else:
            why = reason if made is None else f"it belongs to {made.cell.alias}"
            log.warning("%s is an alias of %s: %s; the cell counts as empty", alias, target, why)
    return found


async def fetch(shelf: Shelf, blueprint_id: str, kind: Kind) -> tuple[Candidate | None, str]:
    """(a blueprint of the library as the archive may have it, reason). Raises what the library raises but NotFound."""
    try:
        reply = await shelf.get_blueprint(pb.GetBlueprintRequest(blueprint_id=blueprint_id))
        graph = read_graph(reply.blueprint.graph)
    except (NotFound, InvalidRequest) as error:
        return None, str(error)
    # it is tried on a small input, and whoever shares this loop does not wait for that
    return await asyncio.to_thread(candidate, graph, kind)


async def keep(shelf: Shelf, archive: Archive, cell: Cell, elite: Elite) -> tuple[Archive, bool, str]:
    """`insert`, and where the cell changes hands its alias follows; the blueprint must be in the library."""
    before = archive.get(cell)
    after, has_it, reason = insert(archive, cell, elite)
    if has_it and (before is None or before.blueprint_id != elite.blueprint_id):
        target = f"{_BLUEPRINTS}{elite.blueprint_id}"
        await shelf.set_alias(pb.SetAliasRequest(alias=cell.alias, target_name=target))
    return after, has_it, reason


async def _aliases(shelf: Shelf) -> list[tuple[str, str]]:
    request = pb.ListAliasesRequest(page=PageRequest(size=_PAGE))
    found: list[tuple[str, str]] = []
    while True:
        reply = await shelf.list_aliases(request)
        found += [(entry.alias, entry.target_name) for entry in reply.aliases]
        if not reply.page.next_token:
            return found
        request.page.token = reply.page.next_token
