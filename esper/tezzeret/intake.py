"""Decide whether an order is taken: what a worker would refuse is refused before it waits in a queue."""

from esper.api.common.v1 import interface_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.codec import read_graph, read_interface
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.errors import InvalidBlueprint, PreconditionFailed
from esper.tezzeret import statuses
from esper.tezzeret.cache import kernels_in_use
from esper.tezzeret.check import CostLimits, birth_reasons, fit_reasons
from esper.tezzeret.port import Library


async def read(
    library: Library, blueprint_id: str, interface: interface_pb2.Interface, limits: CostLimits
) -> tuple[Graph, Interface]:
    """What is to be compiled, checked. A blueprint that no interface can help is marked INVALID.

    Raises InvalidBlueprint (every reason), NotFound and PreconditionFailed (archived).
    """
    stored = await statuses.blueprint(library, blueprint_id)
    if stored.status == pb.BLUEPRINT_STATUS_ARCHIVED:
        raise PreconditionFailed(
            f"blueprints/{blueprint_id} is ARCHIVED; to use it again: "
            f"esper library move blueprints/{blueprint_id} UNVALIDATED --reason WHY"
        )
    graph, where = read_graph(stored.graph), read_interface(interface)
    reasons = birth_reasons(graph)
    if reasons:
        await statuses.mark(library, blueprint_id, statuses.INVALID, "; ".join(reasons))
    reasons += fit_reasons(graph, where, limits)
    if reasons:
        raise InvalidBlueprint(f"blueprints/{blueprint_id}: " + "; ".join(reasons))
    return graph, where


async def interest(library: Library, blueprint_id: str) -> float:
    """The highest interest of a blueprint's kernels in use, 0 to 1; 0: none is, or none was judged."""
    return max((kernel.interest for kernel in await kernels_in_use(library, blueprint_id)), default=0.0)
