"""Bus consumer of the forge: compilation.blueprint.submitted, one work item per submission."""

from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.oona.consume import work_through
from esper.oona.envelope import open_as
from esper.oona.port import Bus, Envelope, WorkOptions
from esper.oona.subjects import Name
from esper.rpc.validation import validate
from esper.tezzeret.forge import Forge

GROUP = "tezzeret"


async def consume(
    bus: Bus,
    forge: Forge,
    options: WorkOptions = WorkOptions(),  # noqa: B008  frozen
) -> None:
    """Compile what is submitted until the bus is closed; an item is settled when its kernels are stored."""

    async def do(envelope: Envelope) -> None:
        message = open_as(envelope, pb.BlueprintSubmitted)
        validate(message)
        await forge.compile_submitted(message)

    await work_through(bus, Name.BLUEPRINT_SUBMITTED, GROUP, do, options=options)
