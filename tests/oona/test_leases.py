"""Leases: one holder at a time, by the broker's clock."""

import asyncio
import contextlib

import pytest
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

from esper import errors
from esper.oona.jetstream import JetStreamBus
from esper.oona.leases import Leases

from .conftest import crash

NAME = "plan.run-1"


@pytest.fixture
async def parties(broker):
    buses = [await JetStreamBus.connect(broker.address) for _ in range(2)]
    yield [await Leases.open(bus, 1.5) for bus in buses]
    for bus in buses:
        await bus.close()


async def test_one_party_at_a_time_and_the_next_after_release(parties):
    one, two = parties
    lease = await one.acquire(NAME, "a")
    assert await two.acquire(NAME, "b") is None
    assert (await two.acquire("other", "b")).holder == "b"
    await one.release(lease)
    taken = await two.acquire(NAME, "b")
    assert taken.fence > lease.fence
    await one.release(lease)
    assert await one.acquire(NAME, "a") is None


async def test_contenders_agree_on_one_winner(parties):
    won = await asyncio.gather(*(parties[i % 2].acquire(NAME, f"p{i}") for i in range(10)))
    assert len([lease for lease in won if lease is not None]) == 1


async def test_a_lease_that_is_not_renewed_ends(parties):
    one, two = parties
    lease = await one.acquire(NAME, "a")
    for _ in range(4):
        await asyncio.sleep(0.5)
        lease = await one.renew(lease)
        assert await two.acquire(NAME, "b") is None
    async with asyncio.timeout(20):
        while (taken := await two.acquire(NAME, "b")) is None:
            await asyncio.sleep(0.05)
    assert taken.fence > lease.fence
    with pytest.raises(errors.Conflict, match="has ended"):
        await one.renew(lease)


async def test_a_lease_that_ends_between_the_refusal_and_the_look_is_not_held(parties, monkeypatch):
    one, two = parties
    await one.acquire(NAME, "a")

    async def ended(self, key, revision=None):
        raise KeyNotFoundError

    monkeypatch.setattr(KeyValue, "_get", ended)
    assert await two.acquire(NAME, "b") is None
    monkeypatch.undo()
    assert await two.acquire(NAME, "b") is None


async def test_an_attempt_whose_answer_was_lost_is_recognised(parties):
    one, _ = parties
    lease = await one.acquire(NAME, "a")
    assert await one.acquire(NAME, "a") == lease
    renewed = await one.renew(lease)
    assert await one.renew(lease) == renewed


async def test_a_lease_survives_a_crash_of_the_broker(broker, parties):
    one, two = parties
    lease = await one.acquire(NAME, "a")
    crash(broker)
    broker.restart()
    renewed = None
    async with asyncio.timeout(20):
        while renewed is None:
            with contextlib.suppress(errors.Unavailable):
                renewed = await one.renew(lease)
    assert renewed.fence > lease.fence
    assert await two.acquire(NAME, "b") is None


async def test_a_lease_too_short_to_keep_is_refused(broker):
    with pytest.raises(errors.InvalidConfig, match=r"at least 0\.1 s"):
        await Leases.open(None, 0.01)
