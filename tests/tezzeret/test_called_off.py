"""Orders that everybody has stopped waiting for: the worker ends, and nothing of them is stored or told."""

import asyncio

import pytest

from esper.karn.templates import TEMPLATES

from .fakes import until
from .test_forge import CONV3, MAP, Shop, opened


async def at_work(shop: Shop, blueprint: str) -> asyncio.Task:
    """Somebody who waits for an order that a worker has."""
    task = asyncio.create_task(shop.forge.compile(blueprint, MAP))
    await until(lambda: shop.pool.runs)
    return task


async def gone(task: asyncio.Task) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_compilation_that_nobody_waits_for_ends_and_leaves_nothing():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.pool.gate = asyncio.Event()
        await gone(await at_work(shop, blueprint))
        await until(lambda: shop.forge.busy == 0)
        assert shop.pool.ended == 1
        assert not shop.library.kernels
        assert not shop.ears.heard
        assert not shop.forge.records()
        assert (shop.forge.succeeded, shop.forge.failed) == (0, 0)
        assert shop.library.status(blueprint) == "UNVALIDATED"
        assert shop.library.blueprints[blueprint].status_reason == "compiling for map2d[8] float32 was called off"


async def test_it_goes_on_for_another_who_waits():
    async with opened() as shop:
        shop.pool.gate = asyncio.Event()
        blueprint = shop.library.add(CONV3)
        first = await at_work(shop, blueprint)
        ticket = await shop.forge.submit(blueprint, MAP)
        second = asyncio.create_task(shop.forge.result(ticket))
        await until(lambda: ticket.waiters == 2)
        await gone(first)
        assert shop.pool.ended == 0
        shop.pool.gate.set()
        assert (await second).artifact_id in shop.library.kernels
        assert shop.pool.runs == ["compile"]


@pytest.mark.parametrize("begun", [True, False])
async def test_whoever_joined_and_does_not_wait_yet_gets_the_order_done(begun):
    async with opened() as shop:
        shop.pool.gate = asyncio.Event()
        blueprint = shop.library.add(CONV3)
        other = None if begun else await at_work(shop, shop.library.add(TEMPLATES["low_rank"].graph))
        first = asyncio.create_task(shop.forge.compile(blueprint, MAP))
        await until(lambda: shop.pool.runs and shop.forge.queued == (not begun))
        await asyncio.sleep(0.01)
        ticket = await shop.forge.submit(blueprint, MAP)
        await gone(first)
        assert ticket.called_off
        second = asyncio.create_task(shop.forge.result(ticket))
        shop.pool.gate.set()
        assert (await second).artifact_id in shop.library.kernels
        if other is not None:
            await other


async def test_an_equal_order_that_comes_after_is_a_new_compilation():
    async with opened() as shop:
        shop.pool.gate = asyncio.Event()
        blueprint = shop.library.add(CONV3)
        first = await at_work(shop, blueprint)
        first.cancel()
        await asyncio.sleep(0)
        second = asyncio.create_task(shop.forge.compile(blueprint, MAP))
        await until(lambda: len(shop.pool.runs) == 2)
        assert shop.pool.ended == 1
        shop.pool.gate.set()
        assert not (await second).cached
        assert shop.library.status(blueprint) == "COMPILING"


async def test_called_off_before_a_worker_has_it_it_gets_none(monkeypatch):
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        marking, genuine = asyncio.Event(), shop.library.set_blueprint_status

        async def slow(request):
            await marking.wait()
            return await genuine(request)

        monkeypatch.setattr(shop.library, "set_blueprint_status", slow)
        task = asyncio.create_task(shop.forge.compile(blueprint, MAP))
        await until(lambda: shop.forge.busy == 1)
        await asyncio.sleep(0.01)
        await gone(task)
        marking.set()
        await until(lambda: shop.forge.busy == 0)
        assert not shop.pool.runs
        assert shop.library.status(blueprint) == "UNVALIDATED"


async def test_what_is_compiled_by_then_is_stored_and_told(monkeypatch):
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        storing, genuine = asyncio.Event(), shop.library.create_kernel

        async def slow(manifest, files):
            storing.set()
            await asyncio.sleep(0.02)
            return await genuine(manifest, files)

        monkeypatch.setattr(shop.library, "create_kernel", slow)
        task = asyncio.create_task(shop.forge.compile(blueprint, MAP))
        await storing.wait()
        await gone(task)
        await until(lambda: shop.ears.heard)
        assert shop.ears.heard[0].artifact_id in shop.library.kernels


async def test_a_forge_that_stops_while_an_order_is_called_off_stops():
    async with asyncio.timeout(20):
        async with opened() as shop:
            shop.pool.gate = asyncio.Event()
            (await at_work(shop, shop.library.add(CONV3))).cancel()
    assert shop.pool.ended == 1
    assert not shop.library.kernels
