"""From the bus into the store: once each, over restarts, a full disk and nonsense."""

import asyncio
import contextlib

import pytest

from esper.api.simic.v1.replay_pb2 import Filter
from esper.errors import Exhausted
from esper.oona.broker import Broker, BrokerOptions
from esper.oona.cursor import FileCursorStore, MemoryCursorStore
from esper.oona.envelope import Sender
from esper.oona.jetstream import JetStreamBus
from esper.oona.memory import MemoryBus
from esper.oona.subjects import Name
from esper.simic.worker import ReplayWorker

from .reports import report


async def until(condition, timeout_s=20.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def working(worker):
    task = asyncio.create_task(worker.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def publish(bus, *numbers, sender=None):
    sender = sender or Sender("tamiyo/0")
    for number in numbers:
        await bus.publish(Name.FIELD_REPORTS, sender.seal(report(number), run_id="run-1"))


def stored(store):
    return [experience.report.end_step - 500 for experience in store.all(Filter())]


async def test_reports_are_stored_in_order_and_once_over_restarts(store, tmp_path):
    bus, cursors = MemoryBus(), FileCursorStore(tmp_path / "cursors")
    await publish(bus, 1, 2)
    async with working(ReplayWorker(bus, store, cursors)):
        await until(lambda: stored(store) == [1, 2])
    await publish(bus, 2, 3)
    async with working(ReplayWorker(bus, store, MemoryCursorStore())):  # a cursor that was lost: all comes again
        await until(lambda: stored(store) == [1, 2, 3])
    async with working(ReplayWorker(bus, store, cursors)):
        await publish(bus, 4)
        await until(lambda: stored(store) == [1, 2, 3, 4])


async def test_a_report_that_breaks_its_rules_is_counted_and_skipped(store):
    bus = MemoryBus()
    sender = Sender("tamiyo/0")
    await bus.publish(Name.FIELD_REPORTS, sender.seal(report(1, report_id="short"), run_id="run-1"))
    await publish(bus, 2, sender=sender)
    worker = ReplayWorker(bus, store, MemoryCursorStore())
    async with working(worker):
        await until(lambda: stored(store) == [2])
    assert worker.refused == 1


async def test_a_full_disk_makes_reports_wait_and_loses_none(store, monkeypatch):
    bus, failures = MemoryBus(), 3
    add = store.add

    def full_at_first(message):
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Exhausted("disk")
        return add(message)

    monkeypatch.setattr(store, "add", full_at_first)
    await publish(bus, 1, 2)
    async with working(ReplayWorker(bus, store, MemoryCursorStore(), retry_s=0.001)):
        await until(lambda: stored(store) == [1, 2])
    assert failures < 0


async def test_reports_the_stream_no_longer_holds_are_counted_as_a_gap(store):
    bus, cursors = MemoryBus(max_messages=1000), MemoryCursorStore()
    await publish(bus, *range(5))
    async with working(ReplayWorker(bus, store, cursors)):
        await until(lambda: len(stored(store)) == 5)
    fresh = MemoryBus()  # a broker whose store was lost: its sequences begin anew
    await publish(fresh, 7)
    worker = ReplayWorker(fresh, store, cursors)
    async with working(worker):
        await until(lambda: stored(store)[-1] == 7)
    assert worker.gaps == 1


@pytest.mark.slow
async def test_on_a_broker(nats_server, store, tmp_path):
    options = BrokerOptions(max_store_bytes=1 << 40)
    with Broker(tmp_path / "broker", options=options) as broker:
        bus = await JetStreamBus.connect(broker.address)
        async with working(ReplayWorker(bus, store, FileCursorStore(tmp_path / "cursors"))):
            await publish(bus, *range(20))
            await until(lambda: stored(store) == list(range(20)))
        await bus.close()
