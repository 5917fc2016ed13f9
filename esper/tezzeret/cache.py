"""What the library already has of an order. It is the forge's cache, and outlives the forge."""

import logging

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.body import read_body
from esper.artifact.bundle import check_id
from esper.blueprint.codec import read_interface
from esper.errors import Corrupt, InvalidRequest, NotFound
from esper.tezzeret.codec import Order, write_target
from esper.tezzeret.compile import request_key
from esper.tezzeret.port import Library

log = logging.getLogger(__name__)

# Kernels that an equal order may be answered with.
_IN_USE = (pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_VALIDATED)
_PAGE = 500


async def kernels_in_use(library: Library, blueprint_id: str) -> list[pb.Kernel]:
    """A blueprint's kernels that nobody has taken out of use, newest first."""
    request = pb.ListKernelsRequest(blueprint_id=blueprint_id, page=PageRequest(size=_PAGE))
    found: list[pb.Kernel] = []
    while True:
        reply = await library.list_kernels(request)
        found += [kernel for kernel in reply.kernels if kernel.status in _IN_USE]
        request.page.token = reply.page.next_token
        if not request.page.token:
            return found


async def find(library: Library, order: Order, key: str) -> str:
    """The artifact id of the newest kernel in use whose request key is the order's, `key`; empty: there is none.

    A kernel of another toolchain has another key.
    """
    for kernel in await kernels_in_use(library, order.blueprint_id):
        place = (kernel.pipeline, kernel.target, read_interface(kernel.interface))
        wanted = (order.pipeline, write_target(order.target), order.interface)
        if place == wanted and await _key(library, kernel.artifact_id) == key:
            return kernel.artifact_id
    return ""


async def _key(library: Library, artifact_id: str) -> str:
    """The request key that a kernel's body gives; empty: its body is not what it was, or it is gone meanwhile."""
    try:
        request = pb.GetKernelRequest(artifact_id=artifact_id, with_manifest=True)
        manifest = (await library.get_kernel(request)).manifest
        check_id(manifest)
        body = read_body(manifest.body)
    except (NotFound, Corrupt, InvalidRequest) as error:
        log.warning("kernels/%s answers no order: %s", artifact_id, error)
        return ""
    return request_key(body.blueprint_id, body.interface, body.target, body.pipeline, body.toolchain)
