"""A forge's idle time: rebuilt, superseded, and given up for whoever has a real order."""

import asyncio

import pytest

from esper.api.urza.v1 import library_pb2
from esper.errors import Unavailable
from esper.karn.templates import TEMPLATES
from esper.tezzeret import compile as compiling
from esper.tezzeret.forge import ForgeOptions
from esper.tezzeret.idle import IdleWork

from .fakes import until
from .test_forge import CONV3, MAP, Shop, opened

VALIDATED = library_pb2.KERNEL_STATUS_VALIDATED


async def promoted(shop: Shop, blueprint: str) -> str:
    artifact_id = (await shop.forge.compile(blueprint, MAP)).artifact_id
    shop.library.kernels[artifact_id].status = VALIDATED
    return artifact_id


async def test_nothing_is_done_where_everything_is_of_this_toolchain():
    async with opened() as shop:
        await promoted(shop, shop.library.add(CONV3))
        await IdleWork(shop.forge, shop.library).look()
        assert shop.pool.runs == ["compile"]


async def test_another_toolchain_builds_again_and_the_promoted_new_one_supersedes(monkeypatch):
    async with opened() as shop:
        old = await promoted(shop, shop.library.add(CONV3))
        monkeypatch.setattr(compiling, "RECIPE", "3")
        work = IdleWork(shop.forge, shop.library)
        await work.look()
        assert (work.given, work.superseded) == (1, 0)
        (new,) = shop.library.kernels.keys() - {old}
        await work.look()
        assert shop.pool.runs == ["compile"] * 2  # it waits for a verdict, and is not built again
        assert shop.library.kernel_status(old) == "VALIDATED"  # nothing else could be loaded
        shop.library.kernels[new].status = VALIDATED
        await work.look()
        assert work.superseded == 1
        assert shop.library.kernel_status(old) == "SUPERSEDED"
        assert shop.library.kernels[old].status_reason == (f"kernels/{new} is the same blueprint by recipe 3 (not 2)")
        await work.look()
        assert shop.pool.runs == ["compile"] * 2


async def test_an_order_whose_worker_died_is_given_again_when_there_is_time():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.pool.failures = [Unavailable("the worker died")] * 2
        assert (await shop.forge.compile(blueprint, MAP)).HasField("failure")
        await IdleWork(shop.forge, shop.library).look()
        assert len(shop.library.kernels) == 1


async def test_an_order_that_always_fails_is_given_up():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.pool.failures = [Unavailable("the worker died")] * 100
        await shop.forge.compile(blueprint, MAP)
        work = IdleWork(shop.forge, shop.library)
        for _ in range(5):
            await work.look()
        assert work.given == 2
        assert len(shop.forge.records()) == 3


async def test_what_the_forge_refuses_is_asked_for_once(monkeypatch, caplog):
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        await promoted(shop, blueprint)
        shop.library.blueprints[blueprint].status = library_pb2.BLUEPRINT_STATUS_ARCHIVED
        monkeypatch.setattr(compiling, "RECIPE", "3")
        work = IdleWork(shop.forge, shop.library)
        with caplog.at_level("INFO"):
            for _ in range(3):
                await work.look()
        assert work.given == 0
        assert len([one for one in caplog.messages if "is not built again" in one]) == 1


async def test_real_orders_end_the_look(monkeypatch):
    async with opened() as shop:
        for name in ("conv3", "wide_mlp"):
            await promoted(shop, shop.library.add(TEMPLATES[name].graph))
        monkeypatch.setattr(compiling, "RECIPE", "3")
        shop.pool.gate = asyncio.Event()
        work = IdleWork(shop.forge, shop.library)
        look = asyncio.create_task(work.look())
        await until(lambda: shop.forge.busy == 1)
        real = asyncio.create_task(shop.forge.compile(shop.library.add(TEMPLATES["low_rank"].graph), MAP))
        await until(lambda: shop.forge.queued == 1)
        shop.pool.gate.set()
        await asyncio.gather(look, real)
        assert work.given == 1


async def test_a_kernel_whose_body_changed_is_passed_over(monkeypatch, caplog):
    async with opened() as shop:
        broken = await promoted(shop, shop.library.add(CONV3))
        whole = await promoted(shop, shop.library.add(TEMPLATES["wide_mlp"].graph))
        shop.library.artifacts[broken][0].body = b"{}"
        monkeypatch.setattr(compiling, "RECIPE", "3")
        work = IdleWork(shop.forge, shop.library)
        await work.look()
        assert work.given == 1
        assert [one for one in caplog.messages if broken in one]
        assert not [one for one in caplog.messages if whole in one]


def test_a_forge_for_a_device_makes_fast_for_the_cpu_beside():
    pytest.importorskip("triton")
    on = Shop(ForgeOptions(targets=("cpu", "sm_90")))
    targets = IdleWork(on.forge, on.library).targets()
    assert (targets["fast"], targets["standard"]) == (("cpu",), ("sm_90",))
    here = Shop()
    assert IdleWork(here.forge, here.library).targets() == {"fast": ("cpu",)}


async def test_it_looks_again_when_the_library_is_back(caplog):
    async with opened() as shop:
        await promoted(shop, shop.library.add(CONV3))
        shop.library.away = True
        work = asyncio.create_task(IdleWork(shop.forge, shop.library).run(0.001))
        await until(lambda: len([one for one in caplog.messages if "idle work waits" in one]) >= 2)
        assert not work.done()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
