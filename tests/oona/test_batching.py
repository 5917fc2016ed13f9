"""The telemetry buffer: in order, in batches, bounded; what is dropped is the oldest, and counted."""

import asyncio

import pytest

from esper import errors
from esper.oona import batching
from esper.oona.batching import BatchOptions, TelemetryBuffer
from esper.oona.memory import MemoryBus
from esper.oona.subjects import Name

from .conftest import command, health, until


class Away(MemoryBus):
    """A bus whose broker can be away, and which notes what it is asked to publish."""

    def __init__(self):
        super().__init__()
        self.away = False
        self.error = errors.Unavailable("the broker is away")
        self.batches = []

    async def publish_batch(self, name, envelopes, *, rank=None, timeout_s=None):
        if self.away:
            raise self.error
        await asyncio.sleep(0.002)
        self.batches.append([envelope.id for envelope in envelopes])
        return await super().publish_batch(name, envelopes, rank=rank, timeout_s=timeout_s)


async def stored(bus, count, **options):
    found = []
    async with asyncio.timeout(20):
        async for delivery in bus.subscribe(Name.SEED_HEALTH, **options):
            found.append(delivery.envelope.id)
            if len(found) == count:
                break
    return found


async def test_offers_become_batches_in_order(sender):
    bus = Away()
    sent = [health(sender, step) for step in range(500)]
    async with TelemetryBuffer(bus, BatchOptions(batch=64)) as buffer:
        for envelope in sent:
            buffer.offer(Name.SEED_HEALTH, envelope)
        await buffer.flush(10)
        assert (buffer.published, buffer.dropped, buffer.pending) == (500, 0, 0)
    assert await stored(bus, 500) == [envelope.id for envelope in sent]
    assert len(bus.batches) < 20
    assert max(map(len, bus.batches)) == 64


async def test_runs_and_ranks_go_their_own_ways(sender):
    bus = Away()
    async with TelemetryBuffer(bus) as buffer:
        for step in range(10):
            buffer.offer(Name.SEED_HEALTH, health(sender, step, "run-1"), rank=step % 2)
            buffer.offer(Name.SEED_HEALTH, health(sender, step, "run-2"))
        await buffer.flush(10)
    assert len(await stored(bus, 10, run_id="run-2")) == 10
    assert len(bus.batches) == 3


async def test_a_batch_is_bounded_in_bytes(sender):
    bus = Away()
    one = health(sender, 0).ByteSize()
    async with TelemetryBuffer(bus, BatchOptions(batch_bytes=one * 3 + 100)) as buffer:
        for step in range(9):
            buffer.offer(Name.SEED_HEALTH, health(sender, step))
        await buffer.flush(10)
    assert max(map(len, bus.batches)) <= 3


async def test_while_the_broker_is_away_the_oldest_go_and_are_counted(sender):
    bus = Away()
    bus.away = True
    sent = [health(sender, step) for step in range(100)]
    async with TelemetryBuffer(bus, BatchOptions(capacity=20, retry_s=0.01)) as buffer:
        for envelope in sent:
            buffer.offer(Name.SEED_HEALTH, envelope)
        assert (buffer.dropped, buffer.pending) == (80, 20)
        with pytest.raises(errors.DeadlineExceeded, match="20 envelopes"):
            await buffer.flush(0.05)
        bus.away = False
        await buffer.flush(10)
        assert (buffer.published, buffer.dropped) == (20, 80)
    assert await stored(bus, 20) == [envelope.id for envelope in sent[80:]]


async def test_the_buffer_is_bounded_in_bytes_too(sender):
    bus = Away()
    bus.away = True
    size_bytes = health(sender, 0).ByteSize()
    buffer = TelemetryBuffer(bus, BatchOptions(capacity_bytes=size_bytes * 5 + 200))
    for step in range(50):
        buffer.offer(Name.SEED_HEALTH, health(sender, step))
    assert buffer.pending <= 7
    assert buffer.dropped == 50 - buffer.pending


async def test_a_batch_on_its_way_is_sent_again_as_it_was(sender):
    """So that the broker knows it when the first attempt did arrive."""
    bus = Away()
    attempts = []
    whole = bus.publish_batch

    async def lossy(name, envelopes, **options):
        attempts.append([envelope.id for envelope in envelopes])
        await whole(name, envelopes, **options)
        if len(attempts) == 1:
            raise errors.DeadlineExceeded("the answer was lost")

    bus.publish_batch = lossy
    async with TelemetryBuffer(bus, BatchOptions(retry_s=0.01)) as buffer:
        first = [health(sender, step) for step in range(3)]
        for envelope in first:
            buffer.offer(Name.SEED_HEALTH, envelope)
        await until(lambda: len(attempts) == 1)
        last = health(sender, 9)
        buffer.offer(Name.SEED_HEALTH, last)
        await buffer.flush(10)
    assert attempts[0] == attempts[1]
    assert await stored(bus, 4) == [envelope.id for envelope in [*first, last]]


async def test_what_no_retry_can_send_is_dropped_and_counted_and_the_rest_goes_on(sender, caplog):
    bus = Away()
    bus.away, bus.error = True, errors.PreconditionFailed("the stream is another's")
    async with TelemetryBuffer(bus) as buffer:
        buffer.offer(Name.SEED_HEALTH, health(sender, 1))
        await until(lambda: buffer.dropped == 1)
        bus.away = False
        buffer.offer(Name.SEED_HEALTH, health(sender, 2))
        await buffer.flush(10)
    assert "dropped" in caplog.text


async def test_close_counts_what_it_could_not_send(sender, monkeypatch):
    bus = Away()
    bus.away = True
    buffer = TelemetryBuffer(bus)
    async with buffer:
        for step in range(3):
            buffer.offer(Name.SEED_HEALTH, health(sender, step))
        await buffer.close(timeout_s=0.05)
    assert (buffer.dropped, buffer.pending, buffer.published) == (3, 0, 0)


async def test_what_may_not_be_dropped_is_not_taken(sender):
    async with TelemetryBuffer(MemoryBus()) as buffer:
        with pytest.raises(errors.InvalidRequest, match="publish it"):
            buffer.offer(Name.COMMANDS, command(sender, 1))
        with pytest.raises(errors.InvalidRequest):
            buffer.offer(Name.SEED_HEALTH, command(sender, 1))
        large = health(sender, 1)
        large.payload = b"x" * MemoryBus().max_envelope_bytes
        with pytest.raises(errors.Exhausted, match="at most"):
            buffer.offer(Name.SEED_HEALTH, large)


def test_a_batch_size_has_bounds():
    with pytest.raises(errors.InvalidConfig, match="2000"):
        batching.TelemetryBuffer(MemoryBus(), BatchOptions(batch=2000))
