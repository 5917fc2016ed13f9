"""The forge's queue: order, bound, one entry per key."""

import asyncio

import pytest

from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.blueprint.interface import Interface, Kind
from esper.errors import Exhausted, Unavailable
from esper.karn.templates import TEMPLATES
from esper.tezzeret.codec import Order
from esper.tezzeret.queue import Queue

ORDER = Order(TEMPLATES["conv3"].graph, "a" * 64, Interface(Kind.MAP2D, 8), "cpu", "fast")


async def taken(queue: Queue, count: int) -> list[str]:
    return [(await queue.take()).key for _ in range(count)]


async def test_higher_priority_first_then_first_come():
    queue = Queue(10)
    for key, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
        queue.raise_priority(queue.put(key, ORDER), priority)
    assert await taken(queue, 4) == ["b", "d", "a", "c"]


async def test_an_order_is_taken_once_whatever_its_priority_was_before():
    queue = Queue(10)
    ticket = queue.put("a", ORDER)
    for priority in (3, 2, 9):
        queue.raise_priority(ticket, priority)
    queue.put("b", ORDER)
    assert await taken(queue, 2) == ["a", "b"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.01)


async def test_the_bound_counts_what_waits_and_not_what_is_at_work():
    queue = Queue(2)
    queue.put("a", ORDER)
    queue.put("b", ORDER)
    with pytest.raises(Exhausted, match=r"holds 2 orders, the limit; .* raise max_queued"):
        queue.put("c", ORDER)
    await queue.take()
    queue.put("c", ORDER)
    assert queue.queued == 2


async def test_a_dropped_order_is_not_taken_and_may_come_again():
    queue = Queue(10)
    old = queue.put("a", ORDER)
    queue.drop(old)
    assert queue.find("a") is None
    new = queue.put("a", ORDER)
    queue.drop(old)  # the old ticket says nothing about the new one
    assert queue.find("a") is new
    assert await queue.take() is new
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.01)


async def test_a_taker_wakes_when_an_order_comes():
    queue = Queue(10)
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    ticket = queue.put("a", ORDER)
    assert await waiting is ticket
    assert ticket.started


async def test_closing_answers_everybody():
    queue = Queue(10)
    ticket = queue.put("a", ORDER)
    queue.close()
    with pytest.raises(Unavailable, match="the forge is stopping"):
        await ticket.done
    assert queue.queued == 0


async def test_a_ticket_is_settled_once():
    ticket = Queue(1).put("a", ORDER)
    ticket.settle(pb.CompilationRecord(artifact_id="x"))
    ticket.settle(Unavailable("too late"))
    assert (await ticket.done).artifact_id == "x"


async def test_another_order_of_the_same_blueprint_is_seen():
    queue = Queue(10)
    ticket = queue.put("a", ORDER)
    assert not queue.busy_with(ORDER.blueprint_id, ticket)
    queue.put("b", ORDER)
    assert queue.busy_with(ORDER.blueprint_id, ticket)
