"""The evaluator's bus consumer: a kernel in, its verdict stored and told, the item settled."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from esper.api.common.v1.interface_pb2 import Interface
from esper.api.tezzeret.v1.forge_pb2 import KernelReady
from esper.blueprint.codec import write_interface
from esper.errors import Unavailable
from esper.oona.envelope import Sender
from esper.oona.memory import MemoryBus
from esper.oona.port import WorkOptions
from esper.oona.subjects import Name
from esper.urabrask.worker import GROUP, consume
from tests.tezzeret.fakes import until

from .hostile.artifacts import WHERE
from .test_evaluator import Hall, opened


@contextlib.asynccontextmanager
async def consuming(bus: MemoryBus, hall: Hall) -> AsyncIterator[None]:
    task = asyncio.create_task(consume(bus, hall.evaluator, WorkOptions(redeliver_after_s=5.0, max_deliveries=3)))
    try:
        yield
    finally:
        await bus.close()
        await task


async def publish(bus: MemoryBus, artifact_id: str, interface: Interface | None = None) -> None:
    message = KernelReady(artifact_id=artifact_id, blueprint_id="a" * 64, interface=interface or write_interface(WHERE))
    await bus.publish(Name.KERNEL_READY, Sender("tezzeret/0").seal(message))


async def test_what_the_forge_makes_is_evaluated():
    bus = MemoryBus()
    async with opened() as hall, consuming(bus, hall):
        name = await hall.add()
        await publish(bus, name)
        await until(lambda: bool(hall.ears.heard))
        assert hall.library.kernel_status(name) == "VALIDATED"


async def test_a_kernel_told_twice_gets_one_verdict():
    bus = MemoryBus()
    async with opened() as hall, consuming(bus, hall):
        name = await hall.add()
        await publish(bus, name)
        await publish(bus, name)
        await until(lambda: len(hall.ears.heard) == 2)
        assert hall.pool.runs.count("evaluate") == 1


async def test_a_worker_that_is_away_costs_time_and_no_kernel(monkeypatch):
    monkeypatch.setattr("esper.oona.consume.LONGEST_DELAY_S", 0.01)
    bus = MemoryBus()
    async with opened() as hall, consuming(bus, hall):
        name = await hall.add()
        hall.pool.failures = [Unavailable("the worker died")] * 3
        await publish(bus, name)
        await until(lambda: bool(hall.ears.heard))
        assert hall.library.kernel_status(name) == "VALIDATED"


@pytest.mark.parametrize("away", ["the library", "the workers"])
async def test_a_kernel_that_the_bus_gave_up_has_a_verdict_in_the_end(monkeypatch, away):
    monkeypatch.setattr("esper.oona.consume.LONGEST_DELAY_S", 0.01)
    bus = MemoryBus()
    async with opened() as hall, consuming(bus, hall):
        name = await hall.add()
        hall.library.away = away == "the library"
        if away == "the workers":  # two attempts for each of three deliveries, and for the backlog's first try
            hall.pool.failures = [Unavailable("the worker died")] * 8
        await publish(bus, name)
        while not (dead := await bus.dead_letters(Name.KERNEL_READY, GROUP)):
            await asyncio.sleep(0.001)
        assert dead[0].deliveries == 3 and dead[0].reason.startswith("Unavailable")
        assert hall.library.kernel_status(name) == "PENDING_BENCHMARKING"
        looking = asyncio.create_task(hall.evaluator.backlog.run(0.01))
        hall.library.away = False
        await until(lambda: bool(hall.ears.heard))
        looking.cancel()
        assert hall.library.kernel_status(name) == "VALIDATED"


async def test_failed_compilations_pass_by_and_broken_messages_are_dead_letters():
    bus = MemoryBus()
    async with opened() as hall, consuming(bus, hall):
        await publish(bus, "")
        await publish(bus, "x" * 65)
        while not (dead := await bus.dead_letters(Name.KERNEL_READY, GROUP)):
            await asyncio.sleep(0.001)
        assert len(dead) == 1
        assert hall.pool.runs == ["isolation"]
