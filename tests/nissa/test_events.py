"""The run's log, and watching it: replay then live, no gap, no repeat."""

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.errors import InvalidRequest
from esper.nissa.events import EventLog, log_path

from .feed import recorded

EVENTS = recorded()


@pytest.fixture
def log(tmp_path):
    made = EventLog(tmp_path / "log.sqlite")
    yield made
    made.close()


def fill(log, numbers):
    for number in numbers:
        log.append(EVENTS[number], str(number))


async def positions(log, after=0, over_in_s=lambda: 0.0):
    return [event.position async for event in log.watch(after, over_in_s)]


def test_an_event_is_stored_once_per_key(log):
    assert log.append(EVENTS[0], "a") == (1, False)
    assert log.append(EVENTS[1], "b") == (2, False)
    assert log.append(EVENTS[1], "a") == (1, True)
    assert log.last_position == 2


async def test_a_run_that_is_over_is_replayed_and_ends(log):
    fill(log, range(5))
    assert await positions(log) == [1, 2, 3, 4, 5]
    assert await positions(log, 3) == [4, 5]
    assert await positions(log, 99) == []
    assert not log.watched


async def test_live_events_follow_those_replayed(log):
    fill(log, range(3))
    seen = []

    async def follow():
        async for event in log.watch(0, lambda: None):
            seen.append(event.position)

    task = asyncio.create_task(follow())
    while len(seen) < 3:
        await asyncio.sleep(0)
    assert log.watched
    fill(log, range(3, 6))
    log.append(EVENTS[0], "0")  # a repeat wakes nobody
    while len(seen) < 6:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert not log.watched


async def test_a_run_is_over_only_when_nothing_came_in_time(log):
    fill(log, range(1))
    asked = []

    def soon():
        asked.append(1)
        if len(asked) == 1:
            asyncio.get_running_loop().call_soon(fill, log, range(1, 3))
        return 0.2

    assert await positions(log, over_in_s=soon) == [1, 2, 3]
    assert len(asked) == 2


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 6))
def test_every_watcher_sees_every_event_once_in_order(tmp_path_factory, bursts, after):
    log = EventLog(tmp_path_factory.mktemp("log") / "log.sqlite")
    total = sum(bursts)

    async def run():
        done = False
        watchers = [asyncio.create_task(positions(log, after, lambda: 0.0 if done else None)) for _ in range(3)]
        number = 0
        for burst in bursts:
            for _ in range(burst):
                log.append(EVENTS[number % len(EVENTS)], str(number))
                number += 1
            await asyncio.sleep(0)
        done = True
        log.append(EVENTS[0], "last")
        return await asyncio.wait_for(asyncio.gather(*watchers), 10)

    for seen in asyncio.run(run()):
        assert seen == list(range(after + 1, total + 2))
    log.close()


async def test_a_watcher_that_leaves_is_forgotten(log):
    fill(log, range(3))
    async with contextlib.aclosing(log.watch(0, lambda: None)) as events:
        assert (await anext(events)).position == 1
        assert log.watched
    assert not log.watched


@pytest.mark.parametrize("run_id", ["", "../etc/passwd", "A", "a/b", "x" * 65])
def test_what_is_no_run_id_has_no_file(tmp_path, run_id):
    with pytest.raises(InvalidRequest, match="does not match"):
        log_path(tmp_path, run_id)
