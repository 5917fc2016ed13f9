"""The forge's bus consumer: a submission in, its kernels stored and told, the item settled."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface, Kind
from esper.errors import Unavailable
from esper.karn.templates import TEMPLATES
from esper.oona.envelope import Sender
from esper.oona.memory import MemoryBus
from esper.oona.port import WorkOptions
from esper.oona.subjects import Name
from esper.tezzeret.worker import GROUP, consume

from .fakes import until
from .test_forge import Shop

MAP = write_interface(Interface(Kind.MAP2D, 8))


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    made = Shop()
    async with made.forge:
        yield made


@contextlib.asynccontextmanager
async def consuming(bus: MemoryBus, shop: Shop) -> AsyncIterator[None]:
    task = asyncio.create_task(consume(bus, shop.forge, WorkOptions(redeliver_after_s=5.0, max_deliveries=3)))
    try:
        yield
    finally:
        await bus.close()
        await task


async def submit(bus: MemoryBus, blueprint: str, *interfaces: object) -> None:
    message = pb.BlueprintSubmitted(blueprint_id=blueprint, interfaces=interfaces or [MAP])
    await bus.publish(Name.BLUEPRINT_SUBMITTED, Sender("tamiyo/0").seal(message))


async def test_what_is_submitted_is_compiled(shop):
    bus = MemoryBus()
    async with consuming(bus, shop):
        await submit(bus, shop.library.add(TEMPLATES["conv3"].graph))
        await until(lambda: bool(shop.ears.heard))
        assert shop.ears.heard[0].artifact_id in shop.library.kernels


async def test_a_submission_survives_a_library_that_is_away(shop, monkeypatch):
    bus = MemoryBus()
    monkeypatch.setattr("esper.oona.consume.LONGEST_DELAY_S", 0.01)
    blueprint = shop.library.add(TEMPLATES["conv3"].graph)
    tries = []
    genuine = shop.forge.compile_submitted

    async def away_at_first(message):
        tries.append(message)
        if len(tries) == 1:
            raise Unavailable("the library is away")
        return await genuine(message)

    shop.forge.compile_submitted = away_at_first
    async with consuming(bus, shop):
        await submit(bus, blueprint)
        await until(lambda: bool(shop.library.kernels))
    assert len(tries) == 2


async def test_a_submission_that_cannot_be_served_is_answered_and_settled(shop):
    bus = MemoryBus()
    async with consuming(bus, shop):
        await submit(bus, "f" * 64)
        await until(lambda: bool(shop.ears.heard))
        await submit(bus, shop.library.add(TEMPLATES["conv3"].graph))  # the next one is served
        await until(lambda: len(shop.ears.heard) == 2)
        assert await bus.dead_letters(Name.BLUEPRINT_SUBMITTED, GROUP) == []
    assert "no such blueprint" in shop.ears.heard[0].record.failure.message


async def test_a_message_that_breaks_its_contract_is_a_dead_letter_at_once(shop):
    bus = MemoryBus()
    async with consuming(bus, shop):
        await submit(bus, "not an id")
        await until(lambda: True)
        while not (dead := await bus.dead_letters(Name.BLUEPRINT_SUBMITTED, GROUP)):
            await asyncio.sleep(0.001)
    assert dead[0].deliveries == 1
    assert "blueprint_id" in dead[0].reason


async def test_two_deliveries_of_one_submission_are_one_kernel(shop):
    bus = MemoryBus()
    blueprint = shop.library.add(TEMPLATES["conv3"].graph)
    async with consuming(bus, shop):
        await submit(bus, blueprint)
        await submit(bus, blueprint)
        await until(lambda: len(shop.ears.heard) == 2)
    assert len(shop.library.kernels) == 1
    assert shop.pool.runs == ["compile"]
