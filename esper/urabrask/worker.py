"""Bus consumer of the evaluator: compilation.kernel.ready, one work item per kernel."""

from esper.api.tezzeret.v1 import forge_pb2
from esper.oona.consume import work_through
from esper.oona.envelope import open_as
from esper.oona.port import Bus, Envelope, WorkOptions
from esper.oona.subjects import Name
from esper.rpc.validation import validate
from esper.urabrask.evaluator import Evaluator

GROUP = "urabrask"


async def consume(
    bus: Bus,
    evaluator: Evaluator,
    options: WorkOptions = WorkOptions(),  # noqa: B008  frozen
) -> None:
    """Evaluate what the forge makes until the bus is closed; an item is settled when the verdict is stored."""

    async def do(envelope: Envelope) -> None:
        message = open_as(envelope, forge_pb2.KernelReady)
        validate(message)
        await evaluator.kernel_ready(message)

    await work_through(bus, Name.KERNEL_READY, GROUP, do, options=options)
