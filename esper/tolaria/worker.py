"""The gateway's other side: the bus, the nursery, the components that make a run's kernels ready."""

from collections.abc import AsyncIterator, Awaitable, Callable

from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.nissa.v1 import observability_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.oona.envelope import Sender, unpack
from esper.oona.port import Bus
from esper.oona.subjects import Name

Submit = Callable[[nursery_pb2.Job], Awaitable[None]]
Cancel = Callable[[str], Awaitable[None]]
Results = Callable[[str], AsyncIterator[nursery_pb2.JobResult]]
Prepare = Callable[[trainer_pb2.Hello], Awaitable[None]]

# What becomes an event of the run, by the name of the message's field.
_EVENTS = ("hello", "progress", "transition", "outcome", "rollback", "note", "goodbye")


class BusOutside:
    """Publishes what trainers say, and listens for what is for them. Implements the gateway's Outside."""

    def __init__(self, bus: Bus, submit: Submit, cancel: Cancel, results: Results, prepare: Prepare) -> None:
        self.bus = bus
        self._submit = submit
        self._cancel = cancel
        self._results = results
        self._prepare = prepare
        self.sender = Sender("tolaria")

    async def hello(self, hello: trainer_pb2.Hello) -> None:
        await self._prepare(hello)

    async def submit(self, job: nursery_pb2.Job, /) -> None:
        await self._submit(job)

    async def cancel(self, job_id: str, /) -> None:
        await self._cancel(job_id)

    async def results(self, run_id: str) -> AsyncIterator[nursery_pb2.JobResult]:
        """The nursery's results; what they say of held-out losses becomes an event of the run."""
        async for result in self._results(run_id):
            for number, event in enumerate(events_of_result(result)):
                envelope = self.sender.seal(event, run_id=run_id, key=f"{result.job_id}/{number}")
                await self.bus.publish(Name.EPOCH, envelope)
            yield result

    async def tell(self, run_id: str, key: str, message: trainer_pb2.AttachRequest) -> None:
        kind = message.WhichOneof("message")
        if kind == "state":
            await self.bus.publish(Name.EPOCH, self.sender.seal(message.state, run_id=run_id, key=key))
        elif kind == "health":
            await self.bus.publish(Name.SEED_HEALTH, self.sender.seal(message.health, run_id=run_id, key=key))
        elif kind == "performance":
            await self.bus.publish(
                Name.LAYER_PERFORMANCE, self.sender.seal(message.performance, run_id=run_id, key=key)
            )
        elif kind in _EVENTS:
            event = write_event(run_id, message)
            await self.bus.publish(Name.EPOCH, self.sender.seal(event, run_id=run_id, key=key))

    async def commands(self, run_id: str, after: int) -> AsyncIterator[trainer_pb2.AttachResponse]:
        async for delivery in self.bus.subscribe(Name.COMMANDS, run_id=run_id, after_sequence=after):
            payload = unpack(Name.COMMANDS, delivery.envelope)
            if isinstance(payload, control_pb2.ControlCommand):
                command = trainer_pb2.SequencedCommand(sequence=delivery.sequence, command=payload)
                yield trainer_pb2.AttachResponse(command=command)
            elif isinstance(payload, trainer_pb2.DecisionReply):
                yield trainer_pb2.AttachResponse(decision=payload)


def write_event(run_id: str, message: trainer_pb2.AttachRequest) -> observability_pb2.RunEvent:
    """What a trainer said, as an event of its run."""
    kind = message.WhichOneof("message")
    assert kind is not None
    said = getattr(message, kind)
    event = observability_pb2.RunEvent(run_id=run_id, step=getattr(said, "step", 0))
    event.time.GetCurrentTime()
    getattr(event, kind).CopyFrom(said)
    return event


def events_of_result(result: nursery_pb2.JobResult) -> list[observability_pb2.RunEvent]:
    """Validations in a nursery result: of the run itself, or along a control run."""
    if result.failure.code:
        return []
    if result.HasField("measure") and result.measure.label == "validation":
        score = result.measure.arm_scores[0] if result.measure.arm_scores else None
        return [_validation(result.run_id, result.measure.arm_steps[0], result.measure.arm_losses[0], score, "run")]
    if result.HasField("control_run"):
        found = result.control_run
        return [_validation(result.run_id, p.step, p.validation_loss, None, found.label) for p in found.losses]
    return []


def _validation(run_id: str, step: int, loss: float, score: float | None, arm: str) -> observability_pb2.RunEvent:
    validation = observability_pb2.Validation(step=step, loss=loss, score=score, arm=arm)
    event = observability_pb2.RunEvent(run_id=run_id, step=step, validation=validation)
    event.time.GetCurrentTime()
    return event
