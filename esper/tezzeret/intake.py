"""Decide whether an order is taken: what a worker would refuse is refused before it waits in a queue."""

from esper.api.common.v1 import interface_pb2
from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.codec import read_graph, read_interface
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.errors import InvalidBlueprint, NotFound, PreconditionFailed
from esper.tezzeret import statuses
from esper.tezzeret.check import CostLimits, birth_reasons, fit_reasons
from esper.tezzeret.port import Library

# Kernels that an equal order may be answered with.
_IN_USE = (pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_VALIDATED)
_NEWEST = 500  # kernels of a blueprint that its interest is read from


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
    request = pb.ListKernelsRequest(blueprint_id=blueprint_id, page=PageRequest(size=_NEWEST))
    kernels = (await library.list_kernels(request)).kernels
    return max((kernel.interest for kernel in kernels if kernel.status in _IN_USE), default=0.0)


async def in_use(library: Library, artifact_id: str) -> bool:
    """Whether the library has this kernel and nobody has taken it out of use."""
    try:
        reply = await library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))
    except NotFound:
        return False
    return reply.kernel.status in _IN_USE
