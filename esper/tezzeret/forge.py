"""The forge: takes orders, has workers compile them, signs and stores what comes out, and says so.

What a caller was told is done is in the library by then, and is not done again: an equal order
is answered from there. Nothing is kept here that a restart would lose: work that was not answered
is asked for again by whoever asked.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType

from esper.api.common.v1 import interface_pb2
from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.api.urza.v1 import library_pb2
from esper.artifact.body import PIPELINES
from esper.artifact.bundle import Artifact
from esper.artifact.keys import SigningKey
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface
from esper.errors import InvalidRequest, NotFound, PreconditionFailed, Unavailable
from esper.tezzeret import cache, codec, intake, statuses
from esper.tezzeret.attempt import answered, attempt
from esper.tezzeret.available import CPU, refused, target_for
from esper.tezzeret.check import CostLimits
from esper.tezzeret.codec import AUTO, Order
from esper.tezzeret.compile import request_key, sign_built
from esper.tezzeret.pick import FAST, Load, pick_pipeline
from esper.tezzeret.port import Library, Pool, Publish
from esper.tezzeret.queue import Queue, Ticket

# Wall time of a worker, by pipeline. On an idle machine 0.15, 5 and 60 s are what they are to take; workers give way
# to everything else that runs.
TIMEOUTS_S = {"fast": 30.0, "standard": 60.0, "aggressive": 60.0}


@dataclass(frozen=True, slots=True)
class ForgeOptions:
    """`attempts`: how many workers may die over an order, or overrun its pipeline's time, before it has failed.

    `timeouts_s`: that time in seconds, of each pipeline.
    `targets`: what it makes kernels for, of which an order that names none gets the first that is a device.
    """

    workers: int = 1
    max_queued: int = 1024
    timeouts_s: Mapping[str, float] = field(default_factory=TIMEOUTS_S.copy)
    attempts: int = 2
    targets: tuple[str, ...] = ("cpu",)
    limits: CostLimits = CostLimits()  # noqa: RUF009  frozen
    keep_records: int = 10_000


class Forge:
    """One forge; workers are asked inside `async with`.

    `publish` is told how each order ended; `clock` gives the time for records.
    """

    def __init__(
        self,
        library: Library,
        pool: Pool,
        key: SigningKey,
        publish: Publish,
        clock: Callable[[], datetime],
        options: ForgeOptions = ForgeOptions(),  # noqa: B008  frozen
    ) -> None:
        self.options = options
        self.public_key = key.public_key
        self.succeeded = 0
        self.failed = 0
        self.busy = 0
        self._library = library
        self._pool = pool
        self._key = key
        self._publish = publish
        self._clock = clock
        self._queue = Queue(options.max_queued)
        self._records: deque[tuple[int, pb.CompilationRecord]] = deque(maxlen=options.keep_records)
        self._dispatchers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Forge":
        self._dispatchers = [asyncio.create_task(self._dispatch()) for _ in range(self.options.workers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._dispatchers:
            task.cancel()
        await asyncio.gather(*self._dispatchers, return_exceptions=True)
        self._queue.close()

    @property
    def queued(self) -> int:
        """Orders nobody works on yet."""
        return self._queue.queued

    def records(self) -> list[tuple[int, pb.CompilationRecord]]:
        """Finished compilations, numbered from 1, newest first; the latest `keep_records` of this process."""
        return list(reversed(self._records))

    async def submit(
        self,
        blueprint_id: str,
        interface: interface_pb2.Interface,
        pipeline: int = pb.PIPELINE_FAST,
        priority: int = 0,
        target: int = 0,
    ) -> Ticket:
        """Accept an order; an equal one that is waiting or at work is joined, one the library has is answered.

        Raises NotFound (no such blueprint), InvalidBlueprint (the static check, with every reason),
        PreconditionFailed (archived), Unavailable (a pipeline that is not made here for `target`) and Exhausted.
        """
        word, device = self._known(pipeline, target)
        graph, where = await intake.read(self._library, blueprint_id, interface, self.options.limits)
        reason = ""
        if word == AUTO:
            interest = await intake.interest(self._library, blueprint_id)
            word, reason = self._choose(blueprint_id, where, device, interest)
        target_name = target_for(word, device, self.options.targets)
        limits, limit_s = self.options.limits, self.options.timeouts_s[word]
        order = Order(graph, blueprint_id, where, target_name, word, limits, reason, limit_s)
        key = request_key(blueprint_id, order.interface, order.target, order.pipeline)
        if not self._queue.find(key) and (artifact_id := await cache.find(self._library, order, key)):
            return await self._answer(key, order, artifact_id)
        ticket = self._queue.find(key) or self._queue.put(key, order)
        self._queue.raise_priority(ticket, priority)
        return ticket

    def _known(self, pipeline: int, target: int) -> tuple[str, str]:
        """The words for what is asked, "" for no target. Raises as `target_for` what can be refused unread."""
        word, device = codec.read_pipeline(pipeline), codec.read_target(target)
        if word != AUTO:
            target_for(word, device, self.options.targets)
        return word, device

    def _choose(self, blueprint_id: str, interface: Interface, device: str, interest: float) -> tuple[str, str]:
        """A pipeline for an order that names none, by what the forge is busy with now; and why."""
        load = Load(self.queued, self.busy, self.options.workers)
        passed_over = refused(device, self.options.targets)
        for name in PIPELINES:
            if name not in passed_over:
                target = target_for(name, device, self.options.targets)
                if failure := self._failed_at(blueprint_id, interface, name, target):
                    passed_over[name] = f"it failed for the same order: {failure}"
        return pick_pipeline(load, interest, passed_over)

    def _failed_at(self, blueprint_id: str, interface: Interface, pipeline: str, target: str) -> str:
        """Why the last compilation of this order failed; empty: it did not, or there was none."""
        place = (blueprint_id, write_interface(interface), codec.number(pipeline), codec.write_target(target))
        for _, one in reversed(self._records):
            if (one.blueprint_id, one.interface, one.pipeline, one.target) == place:
                return one.failure.message
        return ""

    async def result(self, ticket: Ticket) -> pb.CompilationRecord:
        """The record when the order has ended; a failed compilation is a record too.

        Raises what kept the order from an end: the library or the bus is away. An order that everybody has stopped
        waiting for is called off, its worker ended and nothing stored, unless the kernel was made by then.
        """
        if ticket.called_off:  # by the last one that waited, between `submit` and here
            ticket = self._queue.find(ticket.key) or self._queue.put(ticket.key, ticket.order)
        ticket.waiters += 1
        try:
            return await asyncio.shield(ticket.done)
        except asyncio.CancelledError:
            if ticket.waiters == 1 and ticket.call_off():
                self._queue.drop(ticket)
            raise
        finally:
            ticket.waiters -= 1

    async def compile(
        self,
        blueprint_id: str,
        interface: interface_pb2.Interface,
        pipeline: int = pb.PIPELINE_FAST,
        priority: int = 0,
        target: int = 0,
    ) -> pb.CompilationRecord:
        """`submit` and `result`."""
        return await self.result(await self.submit(blueprint_id, interface, pipeline, priority, target))

    async def compile_submitted(self, message: pb.BlueprintSubmitted) -> list[pb.CompilationRecord]:
        """Everything a BlueprintSubmitted asks for, in its order; what is refused is a failure, published like others.

        Raises what may pass: Exhausted, and whatever keeps the library or the bus away. Doing it again is safe.
        """
        return list(await asyncio.gather(*(self._compile_one(message, one) for one in message.interfaces)))

    async def _compile_one(
        self, message: pb.BlueprintSubmitted, interface: interface_pb2.Interface
    ) -> pb.CompilationRecord:
        record = codec.new_record(message.blueprint_id, interface, message.pipeline)
        try:
            self._known(message.pipeline, message.target)
        except (InvalidRequest, Unavailable) as error:  # a pipeline that is absent stays so: no use in a retry
            return await self._refuse(record, error)
        try:
            name, pipeline, target = message.blueprint_id, message.pipeline, message.target
            return await self.compile(name, interface, pipeline, message.priority, target)
        except (InvalidRequest, NotFound, PreconditionFailed) as error:
            return await self._refuse(record, error)

    async def _answer(self, key: str, order: Order, artifact_id: str) -> Ticket:
        ticket = Ticket(key, order)
        ticket.started = True
        await self._not_evaluated(ticket)
        record = codec.new_record(order.blueprint_id, write_interface(order.interface), codec.number(order.pipeline))
        record.artifact_id, record.cached = artifact_id, True
        record.target, record.pipeline_reason = codec.write_target(order.target), order.pipeline_reason
        ticket.settle(await self._end(record))
        return ticket

    async def _refuse(self, record: pb.CompilationRecord, error: Exception) -> pb.CompilationRecord:
        record.failure.CopyFrom(codec.write_failure(error))
        return await self._end(record)

    async def _dispatch(self) -> None:
        while True:
            ticket = await self._queue.take()
            self.busy += 1
            try:
                if (record := await self._work(ticket)) is not None:
                    ticket.settle(record)
            except Exception as error:  # whoever waits hears of it; the forge goes on
                ticket.settle(error)
            finally:
                ticket.settle(Unavailable("the forge is stopping; send the request again when it is back"))
                self._queue.drop(ticket)
                self.busy -= 1

    async def _work(self, ticket: Ticket) -> pb.CompilationRecord | None:
        """Compile and store; None: the order was called off, which leaves no kernel, no record and no news."""
        order = ticket.order
        await statuses.mark(self._library, order.blueprint_id, statuses.COMPILING, f"compiling for {order.interface}")
        made = await ticket.compile(attempt(self._pool, order, self.options.attempts))
        if made is None:
            await self._let_go(ticket, statuses.UNVALIDATED, f"compiling for {order.interface} was called off")
            return None
        record, artifact = made
        record.operation_name = ticket.operation_name
        record.target, record.pipeline_reason = codec.write_target(order.target), order.pipeline_reason
        if artifact is None:
            await self._give_up(ticket, record)
        else:
            await self._store(order, artifact)
            await self._not_evaluated(ticket)
        return await self._end(record)

    async def _store(self, order: Order, artifact: Artifact) -> None:
        signed = sign_built(artifact, self._key, order.target, order.pipeline)
        await self._library.create_kernel(library_pb2.KernelManifest(artifact=signed.manifest), signed.files)

    async def _not_evaluated(self, ticket: Ticket) -> None:
        """Let go of a blueprint whose kernel nobody here evaluates, so that no verdict would move it on."""
        if (target := ticket.order.target) != CPU:
            await self._let_go(ticket, statuses.UNVALIDATED, f"compiled for {target}, and not evaluated")

    async def _give_up(self, ticket: Ticket, record: pb.CompilationRecord) -> None:
        """INVALID if a worker found so all there is; what only a pipeline's kernels fail at is no fault of a design."""
        reason = f"compiling for {ticket.order.interface} failed: {record.failure.message}"
        found = answered(record) and ticket.order.pipeline == FAST
        found = found and not await cache.kernels_in_use(self._library, ticket.order.blueprint_id)
        await self._let_go(ticket, statuses.INVALID if found else statuses.UNVALIDATED, reason)

    async def _let_go(self, ticket: Ticket, status: library_pb2.BlueprintStatus.ValueType, reason: str) -> None:
        """Mark a blueprint that no other order is open for, and that no verdict on a kernel moves on."""
        name = ticket.order.blueprint_id
        kernels = await cache.kernels_in_use(self._library, name)
        judged = any(kernel.target == codec.write_target(CPU) for kernel in kernels)
        if not judged and not self._queue.busy_with(name, ticket):
            await statuses.mark(self._library, name, status, reason)

    async def _end(self, record: pb.CompilationRecord) -> pb.CompilationRecord:
        """Date a record, tell everybody, and keep it."""
        record.end_time.FromDatetime(self._clock())
        ready = pb.KernelReady(
            artifact_id=record.artifact_id, blueprint_id=record.blueprint_id, interface=record.interface, record=record
        )
        await self._publish(ready)
        if record.HasField("failure"):
            self.failed += 1
        else:
            self.succeeded += not record.cached
        self._records.append((self._records[-1][0] + 1 if self._records else 1, record))
        return record
