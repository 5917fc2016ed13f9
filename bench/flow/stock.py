"""Have the real forge and evaluator make a kernel, and wait until it is promoted."""

import asyncio
from typing import Any

import grpc

from esper.api.oona.v1 import bus_pb2, bus_pb2_grpc
from esper.api.tezzeret.v1 import forge_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface
from esper.errors import DeadlineExceeded, KernelFault
from esper.karn.templates import TEMPLATES
from esper.oona.envelope import Sender
from esper.oona.subjects import Name
from esper.runtime.clients import LibraryClient

POLL_S = 0.2


async def promoted_kernel(channel: grpc.aio.Channel, title: str, interface: Interface, limit_s: float) -> str:
    """The id of the promoted kernel of a library blueprint for an interface.

    Raises KernelFault where it was made and refused, DeadlineExceeded where it is not there in time.
    """
    blueprint = blueprint_id(TEMPLATES[title].graph)
    order = forge_pb2.BlueprintSubmitted(
        blueprint_id=blueprint,
        interfaces=[write_interface(interface)],
        pipeline=forge_pb2.PIPELINE_FAST,
        submitted_by="bench",
    )
    bus: Any = bus_pb2_grpc.BusServiceStub(channel)
    request = bus_pb2.PublishRequest(name=Name.BLUEPRINT_SUBMITTED, envelope=Sender("bench").seal(order))
    await bus.Publish(request)
    library = LibraryClient(lambda: channel)
    try:
        async with asyncio.timeout(limit_s):
            while True:
                for status in (pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_REJECTED):
                    if found := await _of_blueprint(library, interface, blueprint, status):
                        return found
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise DeadlineExceeded(f"no kernel of {title} for {interface} was promoted within {limit_s:g} s") from error


async def _of_blueprint(library: LibraryClient, interface: Interface, blueprint: str, status: int) -> str:
    request = pb.SearchKernelsRequest(interface=write_interface(interface), status=status, limit=100)  # type: ignore[arg-type]
    for match in (await library.search_kernels(request)).matches:
        if match.kernel.blueprint_id != blueprint:
            continue
        if status == pb.KERNEL_STATUS_REJECTED:
            raise KernelFault(f"kernel {match.kernel.artifact_id} was refused: {match.kernel.status_reason}")
        return match.kernel.artifact_id
    return ""
