"""Kernels without a verdict: found in the library, tried while nothing else is, and never given up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from esper.api.common.v1 import resource_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import KernelFault, Unavailable
from esper.urabrask import backlog as module
from esper.urabrask.backlog import LONGEST_PAUSE_S, Tried, Waiting, due, tried_again
from tests.tezzeret.fakes import until

from .hostile.artifacts import TITLE, WHERE, rewritten
from .test_evaluator import BAD, EvaluatorOptions, Hall, built, opened

AFTER_S = 180.0


@asynccontextmanager
async def looking(hall: Hall, after_s: float = 0.01) -> AsyncIterator[None]:
    task = asyncio.create_task(hall.evaluator.backlog.run(after_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def three(hall: Hall) -> list[str]:
    return [await hall.add(rewritten(*["up = up + 0.0"] * number)) for number in range(3)]


def evaluations(hall: Hall) -> int:
    return hall.pool.runs.count("evaluate")


def test_the_untried_come_first_and_what_the_bus_still_carries_not_at_all():
    waiting = [Waiting(name, age_s) for name, age_s in (("a", 900), ("b", 800), ("c", 700), ("new", 179.9))]
    assert due(waiting, {}, 0.0, AFTER_S) == ["a", "b", "c"]
    tried = {"a": Tried(1, 50.0), "b": Tried(2, 100.0)}
    assert due(waiting, tried, 49.0, AFTER_S) == ["c"]
    assert due(waiting, tried, 50.0, AFTER_S) == ["c", "a"]
    assert due(waiting, tried, 100.0, AFTER_S) == ["c", "a", "b"]


def test_a_clock_that_was_set_back_hides_no_kernel():
    assert due([Waiting("from tomorrow", -86400.0)], {}, 0.0, AFTER_S) == ["from tomorrow"]


def test_each_try_is_followed_by_twice_the_pause_up_to_an_hour():
    tried, pauses = None, list[float]()
    for _ in range(2000):
        tried = tried_again(tried, 1000.0, AFTER_S)
        pauses.append(tried.again_s - 1000.0)
    assert pauses[:6] == [180.0, 360.0, 720.0, 1440.0, 2880.0, LONGEST_PAUSE_S]
    assert (tried.times, pauses[-1]) == (2000, LONGEST_PAUSE_S)


async def test_what_an_earlier_evaluator_left_gets_its_verdict_at_the_start_oldest_first(monkeypatch):
    monkeypatch.setattr(module, "_PAGE", 2)
    async with opened() as hall:
        names = await three(hall)
        async with looking(hall, after_s=3600.0):
            await until(lambda: len(hall.ears.heard) == 3)
        assert [told.artifact_id for told in hall.ears.heard] == names
        assert evaluations(hall) == 3


async def test_a_bad_one_is_rejected_and_not_looked_at_again():
    async with opened() as hall:
        name = await hall.add()
        hall.findings = BAD
        await hall.evaluator.backlog.look(AFTER_S)
        assert hall.library.kernel_status(name) == "REJECTED"
        await hall.evaluator.backlog.look(AFTER_S)
        assert evaluations(hall) == 1


async def test_what_is_for_a_device_or_was_stored_just_now_is_left_alone():
    async with opened() as hall:
        device, young, archived = await three(hall)
        hall.library.kernels[device].target = resource_pb2.TARGET_SM_90
        hall.library.kernels[young].create_time.FromDatetime(hall.evaluator.backlog._clock())
        hall.library.kernels[archived].status = pb.KERNEL_STATUS_ARCHIVED
        await hall.evaluator.backlog.look(AFTER_S)
        assert evaluations(hall) == 0


@pytest.mark.parametrize("failure", [Unavailable("it died"), KernelFault("it raised"), ValueError("not a finding")])
async def test_one_that_fails_keeps_no_other_waiting_and_is_not_tried_again_at_once(failure):
    async with opened() as hall:
        first, *others = await three(hall)
        hall.pool.failures = [failure] * hall.evaluator.options.attempts
        if not isinstance(failure, Unavailable):
            hall.pool.failures = [failure]
        await hall.evaluator.backlog.look(AFTER_S)
        assert [told.artifact_id for told in hall.ears.heard] == others
        done = evaluations(hall)
        await hall.evaluator.backlog.look(AFTER_S)
        assert evaluations(hall) == done
        assert hall.library.kernel_status(first) == "PENDING_BENCHMARKING"


async def test_one_that_failed_is_tried_later():
    async with opened() as hall:
        name = await hall.add()
        hall.pool.failures = [KernelFault("it raised")] * 3
        async with looking(hall):
            await until(lambda: bool(hall.ears.heard))
        assert hall.library.kernel_status(name) == "VALIDATED"
        assert evaluations(hall) == 4


async def test_it_stops_as_soon_as_something_else_is_evaluated():
    async with opened() as hall:
        first, second, third = await three(hall)
        hall.pool.gate = asyncio.Event()
        looking_on = asyncio.create_task(hall.evaluator.backlog.look(AFTER_S))
        await until(lambda: evaluations(hall) == 1)
        asked = asyncio.create_task(hall.evaluator.evaluate(third))
        await until(lambda: len(hall.evaluator._open) == 2)
        gate, hall.pool.gate = hall.pool.gate, asyncio.Event()
        gate.set()
        await looking_on
        assert hall.library.kernel_status(first) == "VALIDATED"
        hall.pool.gate.set()
        await asked
        assert [told.artifact_id for told in hall.ears.heard] == [first, third]
        assert hall.library.kernel_status(second) == "PENDING_BENCHMARKING"


async def test_one_that_got_its_verdict_after_the_look_began_is_not_evaluated_again():
    async with opened(EvaluatorOptions(workers=2)) as hall:
        first, *others = await three(hall)
        hall.pool.gate = asyncio.Event()
        looking_on = asyncio.create_task(hall.evaluator.backlog.look(AFTER_S))
        await until(lambda: evaluations(hall) == 1)
        gate, hall.pool.gate = hall.pool.gate, None
        await asyncio.gather(*map(hall.evaluator.evaluate, others))
        gate.set()
        await looking_on
        assert {told.artifact_id for told in hall.ears.heard} == {first, *others}
        assert evaluations(hall) == 3


async def test_a_kernel_that_is_evaluated_is_not_evaluated_beside_it():
    async with opened() as hall:
        name = await hall.add(built(TITLE, WHERE))
        hall.pool.gate = asyncio.Event()
        looking_on = asyncio.create_task(hall.evaluator.backlog.look(AFTER_S))
        await until(lambda: evaluations(hall) == 1)
        asked = asyncio.create_task(hall.evaluator.evaluate(name))
        await asyncio.sleep(0.01)
        hall.pool.gate.set()
        await asyncio.gather(looking_on, asked)
        assert evaluations(hall) == 1


async def test_while_the_library_is_away_it_waits():
    async with opened() as hall:
        name = await hall.add()
        hall.library.away = True
        async with looking(hall):
            await asyncio.sleep(0.03)
            assert evaluations(hall) == 0
            hall.library.away = False
            await until(lambda: hall.library.kernel_status(name) == "VALIDATED")
