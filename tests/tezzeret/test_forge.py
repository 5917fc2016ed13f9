"""The forge: orders joined, answered, retried, refused; nothing lost, nothing half done."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.api.urza.v1 import library_pb2
from esper.artifact.attest import BUILT
from esper.artifact.bundle import Artifact, verify
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter
from esper.errors import (
    DeadlineExceeded,
    Exhausted,
    InvalidBlueprint,
    InvalidRequest,
    KernelFault,
    NotFound,
    PreconditionFailed,
    Unavailable,
    Untrusted,
)
from esper.karn.templates import TEMPLATES
from esper.tezzeret.codec import write_reply
from esper.tezzeret.forge import Forge, ForgeOptions
from esper.tezzeret.job import compile_job
from tests.artifact.samples import FORGE, ROOTS, STRANGER

from .fakes import Clock, DirectPool, Ears, Library, until

MAP, VECTOR = write_interface(Interface(Kind.MAP2D, 8)), write_interface(Interface(Kind.VECTOR, 8))
CONV3 = TEMPLATES["conv3"].graph
LOUD = Graph((Node("a", "scale", (INPUT,), ("w",)),), (Parameter("w", (CHANNELS,), Initialiser.ONES),), "a")


class Shop:
    """A forge and all it talks to."""

    def __init__(self, options: ForgeOptions | None = None, key=FORGE) -> None:
        self.library = Library(ROOTS)
        self.pool = DirectPool({"compile": compile_job})
        self.ears = Ears()
        self.forge = Forge(self.library, self.pool, key, self.ears, Clock(), options or ForgeOptions())

    def heard(self) -> list[tuple[str, str]]:
        return [(m.artifact_id[:4], m.record.failure.message) for m in self.ears.heard]


@asynccontextmanager
async def opened(options: ForgeOptions | None = None, key=FORGE) -> AsyncIterator[Shop]:
    shop = Shop(options, key)
    async with shop.forge:
        yield shop


async def test_an_order_becomes_a_signed_kernel_in_the_library_and_is_told():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        record = await shop.forge.compile(blueprint, MAP)
        manifest, files = shop.library.artifacts[record.artifact_id]
        body = verify(Artifact(manifest, files), ROOTS, require=(BUILT,))
        assert body.blueprint_id == blueprint
        assert shop.library.status(blueprint) == "COMPILING"  # until evaluation promotes
        assert shop.library.kernel_status(record.artifact_id) == "PENDING_BENCHMARKING"
        (message,) = shop.ears.heard
        assert message.artifact_id == record.artifact_id == message.record.artifact_id
        assert (message.blueprint_id, message.interface) == (blueprint, MAP)
        assert record.HasField("end_time")
        assert not record.cached
        assert [r for _, r in shop.forge.records()] == [record]
        assert (shop.forge.succeeded, shop.forge.failed, shop.forge.busy, shop.forge.queued) == (1, 0, 0, 0)


async def test_equal_orders_at_once_are_one_compilation():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        records = await asyncio.gather(*(shop.forge.compile(blueprint, MAP) for _ in range(5)))
        assert len({r.artifact_id for r in records}) == 1
        assert shop.pool.runs == ["compile"]
        assert len(shop.ears.heard) == 1


async def test_an_order_served_before_is_answered_without_a_worker():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        first = await shop.forge.compile(blueprint, MAP)
        second = await shop.forge.compile(blueprint, MAP, pb.PIPELINE_UNSPECIFIED)
        assert second.artifact_id == first.artifact_id
        assert second.cached
        assert shop.pool.runs == ["compile"]
        assert shop.ears.heard[1].record.cached  # whoever asked over the bus hears an answer
        assert shop.forge.succeeded == 1


@pytest.mark.parametrize("status", ["REJECTED", "QUARANTINED", "gone"])
async def test_a_kernel_out_of_use_is_no_answer(status):
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        first = await shop.forge.compile(blueprint, MAP)
        if status == "gone":
            del shop.library.kernels[first.artifact_id]
        else:
            shop.library.kernels[first.artifact_id].status = library_pb2.KernelStatus.Value(f"KERNEL_STATUS_{status}")
        assert not (await shop.forge.compile(blueprint, MAP)).cached
        assert shop.pool.runs == ["compile", "compile"]


@pytest.mark.parametrize("error", [Unavailable("the worker died"), DeadlineExceeded("still at work after 30 s")])
async def test_a_worker_that_dies_or_overruns_costs_one_more_attempt(error):
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.pool.failures = [error]
        assert (await shop.forge.compile(blueprint, MAP)).artifact_id
        assert shop.pool.runs == ["compile", "compile"]
        assert shop.pool.timeouts == [30.0, 30.0]


async def test_after_the_second_attempt_it_has_failed_and_everybody_hears_why():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.pool.failures = [Unavailable("the worker died"), DeadlineExceeded("still at work")]
        record = await shop.forge.compile(blueprint, MAP)
        assert record.artifact_id == ""
        assert record.failure.code == 4
        assert record.failure.message == "still at work (2 of 2 attempts)"
        assert shop.heard() == [("", "still at work (2 of 2 attempts)")]
        # nothing is known of the blueprint: the forge lets go of it
        assert shop.library.status(blueprint) == "UNVALIDATED"
        assert shop.forge.failed == 1
        # and it may be tried again
        assert (await shop.forge.compile(blueprint, MAP)).artifact_id


async def test_a_job_that_raises_is_a_bug_and_not_tried_twice():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.pool.failures = [KernelFault("ZeroDivisionError: oops")]
        record = await shop.forge.compile(blueprint, MAP)
        assert record.failure.code == 13
        assert shop.pool.runs == ["compile"]


@pytest.mark.parametrize("reply", [b"", b"esper frame 1\n", b"junk" * 100])
async def test_a_worker_that_answers_nonsense_has_failed(reply):
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.pool.replies = [reply]
        record = await shop.forge.compile(blueprint, MAP)
        assert "frame" in record.failure.message
        assert not shop.library.kernels


async def test_what_a_worker_finds_wrong_makes_the_blueprint_invalid():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        record = pb.CompilationRecord(blueprint_id=blueprint, interface=MAP, toolchain={"torch": "2"})
        record.failure.message = "the compiled form differs from the reference"
        shop.pool.replies = [write_reply(record, None)]
        assert (await shop.forge.compile(blueprint, MAP)).HasField("failure")
        assert shop.library.status(blueprint) == "INVALID"
        reason = shop.library.blueprints[blueprint].status_reason
        assert reason == "compiling for map2d[8] float32 failed: the compiled form differs from the reference"
        # tried again with another toolchain: INVALID is not the end
        assert (await shop.forge.compile(blueprint, MAP)).artifact_id
        assert shop.library.status(blueprint) == "COMPILING"


async def test_one_interface_that_fails_does_not_spoil_a_blueprint_that_compiles_for_another():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        await shop.forge.compile(blueprint, MAP)
        shop.pool.failures = [KernelFault("oops")]
        other = write_interface(Interface(Kind.TOKENS, 8))
        assert (await shop.forge.compile(blueprint, other)).HasField("failure")
        assert shop.library.status(blueprint) == "COMPILING"


async def test_what_the_static_check_refuses_reaches_no_worker():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        with pytest.raises(InvalidBlueprint, match="conv needs positions"):
            await shop.forge.compile(blueprint, VECTOR)
        assert shop.library.status(blueprint) == "UNVALIDATED"  # it is the interface that does not fit
        loud = shop.library.add(LOUD)
        with pytest.raises(InvalidBlueprint, match="is not zero at birth"):
            await shop.forge.compile(loud, MAP)
        assert shop.library.status(loud) == "INVALID"
        assert "is not zero at birth" in shop.library.blueprints[loud].status_reason
        assert not shop.pool.runs


async def test_refusals_name_what_is_missing():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        with pytest.raises(NotFound, match="no such blueprint"):
            await shop.forge.submit("f" * 64, MAP)
        with pytest.raises(Unavailable, match="ask for fast"):
            await shop.forge.submit(blueprint, MAP, pb.PIPELINE_STANDARD)
        with pytest.raises(InvalidRequest, match="pipeline is 9"):
            await shop.forge.submit(blueprint, MAP, 9)
        with pytest.raises(InvalidRequest, match="interface kind is 0"):
            await shop.forge.submit(blueprint, write_interface(Interface(Kind.MAP2D, 8)).__class__())
        shop.library.blueprints[blueprint].status = library_pb2.BLUEPRINT_STATUS_ARCHIVED
        with pytest.raises(PreconditionFailed, match=r"is ARCHIVED; .* esper library move .* UNVALIDATED"):
            await shop.forge.submit(blueprint, MAP)


async def test_the_queue_is_bounded_and_urgent_orders_overtake():
    async with opened(ForgeOptions(max_queued=3)) as shop:
        shop.pool.gate = asyncio.Event()
        titles = ["conv3", "low_rank", "wide_mlp", "normalisation"]
        names = {title: shop.library.add(TEMPLATES[title].graph) for title in titles}
        first = await shop.forge.submit(names["conv3"], MAP)
        await until(lambda: shop.forge.busy == 1)
        waiting = [await shop.forge.submit(names[title], MAP) for title in titles[1:]]
        assert shop.forge.queued == 3
        with pytest.raises(Exhausted, match="holds 3 orders"):
            await shop.forge.submit(names["conv3"], write_interface(Interface(Kind.MAP2D, 16)))
        # joining an order needs no room, and may make it urgent
        joined = await shop.forge.submit(names["normalisation"], MAP, priority=50)
        assert joined is waiting[2]
        shop.pool.gate.set()
        for ticket in (first, *waiting):
            await shop.forge.result(ticket)
        order = [message.blueprint_id for message in shop.ears.heard]
        assert order == [names[t] for t in ("conv3", "normalisation", "low_rank", "wide_mlp")]


async def test_several_workers_work_at_once():
    async with opened(ForgeOptions(workers=2)) as shop:
        shop.pool.gate = asyncio.Event()
        names = [shop.library.add(TEMPLATES[t].graph) for t in ("conv3", "low_rank", "wide_mlp")]
        tickets = [await shop.forge.submit(name, MAP) for name in names]
        await until(lambda: shop.forge.busy == 2)
        assert shop.forge.queued == 1
        shop.pool.gate.set()
        for ticket in tickets:
            assert (await shop.forge.result(ticket)).artifact_id


async def test_an_order_that_waits_is_dropped_when_nobody_waits_for_it_any_more():
    async with opened() as shop:
        shop.pool.gate = asyncio.Event()
        names = [shop.library.add(TEMPLATES[t].graph) for t in ("conv3", "low_rank")]
        began = asyncio.create_task(shop.forge.compile(names[0], MAP))
        await until(lambda: shop.forge.busy == 1)
        one, two = (asyncio.create_task(shop.forge.compile(names[1], MAP)) for _ in range(2))
        await until(lambda: shop.forge.queued == 1)
        await asyncio.sleep(0.01)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert shop.forge.queued == 1  # somebody still waits
        two.cancel()
        await asyncio.gather(two, return_exceptions=True)
        assert shop.forge.queued == 0
        shop.pool.gate.set()
        await began
        assert [message.blueprint_id for message in shop.ears.heard] == [names[0]]
        assert shop.pool.runs == ["compile"]


async def test_while_the_library_is_away_nothing_is_told_and_the_order_may_come_again():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.pool.gate = asyncio.Event()
        ticket = await shop.forge.submit(blueprint, MAP)
        await until(lambda: shop.forge.busy == 1 and shop.pool.runs)
        shop.library.away = True
        shop.pool.gate.set()
        with pytest.raises(Unavailable, match="the library is away"):
            await shop.forge.result(ticket)
        assert not shop.ears.heard
        with pytest.raises(Unavailable):
            await shop.forge.compile(blueprint, MAP)
        shop.library.away = False
        assert (await shop.forge.compile(blueprint, MAP)).artifact_id


async def test_an_end_that_could_not_be_told_is_told_when_the_order_comes_again():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.ears.deaf = True
        with pytest.raises(Unavailable, match="the bus is away"):
            await shop.forge.compile(blueprint, MAP)
        shop.ears.deaf = False
        record = await shop.forge.compile(blueprint, MAP)
        assert record.cached
        assert [m.artifact_id for m in shop.ears.heard] == [record.artifact_id]


async def test_a_forge_the_library_does_not_trust_stores_nothing():
    async with opened(key=STRANGER) as shop:
        blueprint = shop.library.add(CONV3)
        with pytest.raises(Untrusted):
            await shop.forge.compile(blueprint, MAP)
        assert not shop.library.kernels
        assert not shop.ears.heard


async def test_stopping_answers_everybody_who_waits():
    shop = Shop()
    async with shop.forge:
        shop.pool.gate = asyncio.Event()
        names = [shop.library.add(TEMPLATES[t].graph) for t in ("conv3", "low_rank")]
        tickets = [await shop.forge.submit(name, MAP) for name in names]
        await until(lambda: shop.forge.busy == 1)
    for ticket in tickets:
        with pytest.raises(Unavailable, match="the forge is stopping"):
            await shop.forge.result(ticket)
    assert not shop.ears.heard


async def test_a_submission_of_many_interfaces_is_answered_one_by_one():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        message = pb.BlueprintSubmitted(blueprint_id=blueprint, interfaces=[MAP, VECTOR], priority=7)
        good, bad = await shop.forge.compile_submitted(message)
        assert good.artifact_id
        assert bad.failure.code == 3
        assert "conv needs positions" in bad.failure.message
        assert sorted(bool(m.artifact_id) for m in shop.ears.heard) == [False, True]
        (told,) = [m for m in shop.ears.heard if not m.artifact_id]
        assert told.interface == VECTOR
        assert (shop.forge.succeeded, shop.forge.failed) == (1, 1)


@pytest.mark.parametrize(
    ("blueprint", "pipeline", "code", "words"),
    [
        ("f" * 64, pb.PIPELINE_FAST, 5, "no such blueprint"),
        (None, pb.PIPELINE_STANDARD, 14, "ask for fast"),
        (None, 77, 3, "pipeline is 77"),
    ],
)
async def test_a_submission_that_never_can_be_served_is_answered_and_not_retried(blueprint, pipeline, code, words):
    async with opened() as shop:
        name = blueprint or shop.library.add(CONV3)
        message = pb.BlueprintSubmitted(blueprint_id=name, interfaces=[MAP], pipeline=pipeline)
        (record,) = await shop.forge.compile_submitted(message)
        assert record.failure.code == code
        assert words in record.failure.message
        assert len(shop.ears.heard) == 1


async def test_a_submission_that_may_be_served_later_raises():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.library.away = True
        with pytest.raises(Unavailable, match="the library is away"):
            await shop.forge.compile_submitted(pb.BlueprintSubmitted(blueprint_id=blueprint, interfaces=[MAP]))
        assert not shop.ears.heard


async def test_records_are_bounded_and_numbered_on():
    async with opened(ForgeOptions(keep_records=2)) as shop:
        blueprint = shop.library.add(CONV3)
        for _ in range(4):
            await shop.forge.compile(blueprint, MAP)
        assert [number for number, _ in shop.forge.records()] == [4, 3]


async def test_a_status_that_moved_meanwhile_stands():
    """Evaluation promotes another kernel of the blueprint while this one compiles."""
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        shop.library.blueprints[blueprint].status = library_pb2.BLUEPRINT_STATUS_VALIDATED
        assert (await shop.forge.compile(blueprint, MAP)).artifact_id
        shop.pool.failures = [KernelFault("oops")]
        await shop.forge.compile(blueprint, write_interface(Interface(Kind.MAP2D, 9)))
        assert shop.library.status(blueprint) == "VALIDATED"
