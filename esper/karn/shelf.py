"""Keep the archive in the library: every cell is an alias of the blueprint it has. There is no other store.

Worth is not kept: it is worked out again from what the grafts of a design did, which Simic keeps.
"""

from collections.abc import Callable
from typing import Protocol

from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.codec import read_graph
from esper.blueprint.interface import Kind
from esper.blueprint.ir import Graph
from esper.errors import NotFound
from esper.karn.archive import Archive, Cell, Elite, cell_of, cells, elite_of, insert

# blueprint id -> mean gain of its grafts, None where it was not tried
Observed = Callable[[str], float | None]


class Shelf(Protocol):
    """What of the library is used here; see esper.urza.port."""

    async def get_blueprint(self, request: pb.GetBlueprintRequest, /) -> pb.GetBlueprintResponse: ...

    async def set_alias(self, request: pb.SetAliasRequest, /) -> pb.SetAliasResponse: ...

    async def get_alias(self, request: pb.GetAliasRequest, /) -> pb.GetAliasResponse: ...


async def restore(shelf: Shelf, kind: Kind, observed: Observed) -> dict[Cell, Elite]:
    """The archive of a kind of interface as the library has it; worth as `observed` says today."""
    archive: dict[Cell, Elite] = {}
    for cell in cells(kind):
        try:
            target = (await shelf.get_alias(pb.GetAliasRequest(alias=cell.alias))).target_name
        except NotFound:
            continue
        name = target.removeprefix("blueprints/")
        graph = read_graph((await shelf.get_blueprint(pb.GetBlueprintRequest(blueprint_id=name))).blueprint.graph)
        archive[cell] = elite_of(graph, kind, observed(name))
    return archive


async def keep(shelf: Shelf, archive: Archive, graph: Graph, kind: Kind, elite: Elite) -> tuple[Archive, bool, str]:
    """`insert`, and where the cell changes hands its alias follows; the blueprint must be in the library."""
    cell = cell_of(graph, kind)
    before = archive.get(cell)
    after, has_it, reason = insert(archive, cell, elite)
    if has_it and (before is None or before.blueprint_id != elite.blueprint_id):
        target = f"blueprints/{elite.blueprint_id}"
        await shelf.set_alias(pb.SetAliasRequest(alias=cell.alias, target_name=target))
    return after, has_it, reason
