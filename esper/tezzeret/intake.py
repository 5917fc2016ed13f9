"""Decide whether an order is taken: what a worker would refuse is refused before it waits in a queue."""

from esper.api.common.v1 import interface_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.codec import read_graph, read_interface
from esper.errors import InvalidBlueprint, NotFound, PreconditionFailed
from esper.tezzeret import codec, statuses
from esper.tezzeret.check import CostLimits, birth_reasons, fit_reasons
from esper.tezzeret.codec import Order
from esper.tezzeret.compile import check_request, target_of
from esper.tezzeret.port import Library

# Kernels that an equal order may be answered with.
_IN_USE = (pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_VALIDATED)


async def read(
    library: Library,
    blueprint_id: str,
    interface: interface_pb2.Interface,
    pipeline: int,
    target: str,
    limits: CostLimits,
) -> Order:
    """The order, checked; `target` is the forge's. A blueprint that no interface can help is marked INVALID.

    Raises InvalidBlueprint (every reason), NotFound, PreconditionFailed (archived), Unavailable (pipeline, target).
    """
    word = codec.read_pipeline(pipeline)
    target = target_of(word, target)
    check_request(target, word)
    stored = await statuses.blueprint(library, blueprint_id)
    if stored.status == pb.BLUEPRINT_STATUS_ARCHIVED:
        raise PreconditionFailed(f"blueprints/{blueprint_id} is ARCHIVED; move it to UNVALIDATED to use it again")
    graph, where = read_graph(stored.graph), read_interface(interface)
    reasons = birth_reasons(graph)
    if reasons:
        await statuses.mark(library, blueprint_id, statuses.INVALID, "; ".join(reasons))
    reasons += fit_reasons(graph, where, limits)
    if reasons:
        raise InvalidBlueprint(f"blueprints/{blueprint_id}: " + "; ".join(reasons))
    return Order(graph, blueprint_id, where, target, word, limits)


async def in_use(library: Library, artifact_id: str) -> bool:
    """Whether the library has this kernel and nobody has taken it out of use."""
    try:
        reply = await library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))
    except NotFound:
        return False
    return reply.kernel.status in _IN_USE
