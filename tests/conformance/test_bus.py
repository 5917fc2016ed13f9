"""One suite over every bus: what esper.oona.port promises, in memory and on JetStream."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from esper import errors
from esper.api.kasmina.v1 import control_pb2, telemetry_pb2
from esper.api.tezzeret.v1 import forge_pb2
from esper.oona.broker import Broker, BrokerOptions
from esper.oona.consume import work_through
from esper.oona.cursor import Cursor, CursorState, MemoryCursorStore, follow
from esper.oona.envelope import Sender, open_as
from esper.oona.jetstream import JetStreamBus
from esper.oona.memory import MemoryBus
from esper.oona.port import Bus, WorkOptions
from esper.oona.subjects import Name

PATIENCE_S = 20.0
DIGEST = "a" * 64
_prefixes = itertools.count()


@pytest.fixture(scope="module")
def broker(nats_server, tmp_path_factory):
    # Each test has streams of its own, and each stream reserves what it may keep.
    with Broker(tmp_path_factory.mktemp("broker"), options=BrokerOptions(max_store_bytes=1 << 40)) as started:
        yield started


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request) -> AsyncIterator[Bus]:
    if request.param == "memory":
        made: Bus = MemoryBus()
    else:
        broker = request.getfixturevalue("broker")
        made = await JetStreamBus.connect(broker.address, prefix=f"t{next(_prefixes)}")
    yield made
    await made.close()


@pytest.fixture
def sender():
    return Sender("tamiyo/0")


def command(sender, number, run_id="run-1", **extra):
    message = control_pb2.ControlCommand(command_id=f"c{number}", run_id=run_id, issuer="tamiyo", reason="because")
    return sender.seal(message, run_id=run_id, **extra)


def health(sender, step, run_id="run-1"):
    signal = telemetry_pb2.HealthSignal(site="fc1", step=step)
    message = telemetry_pb2.HealthBatch(run_id=run_id, signals=[signal], sampling_period_steps=32)
    return sender.seal(message, run_id=run_id)


def job(sender, number):
    return sender.seal(forge_pb2.BlueprintSubmitted(blueprint_id=f"{number:064x}"), key=f"job-{number}")


async def first(deliveries, count):
    """The first `count` of an async iterator, closed afterwards."""
    found = []
    async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(deliveries):
        async for delivery in deliveries:
            found.append(delivery)
            if len(found) == count:
                return found
    return found


async def nothing_more(deliveries, wait_s=0.15):
    """Assert that an iterator has nothing to give for a while."""
    task = asyncio.ensure_future(anext(deliveries))
    done, _ = await asyncio.wait({task}, timeout=wait_s)
    assert not done, task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def ids(deliveries):
    return [delivery.envelope.id for delivery in deliveries]


# Order, replay, live.


async def test_what_one_publisher_publishes_arrives_in_order(bus, sender):
    sent = [command(sender, number) for number in range(50)]
    published = [await bus.publish(Name.COMMANDS, envelope) for envelope in sent]
    got = await first(bus.subscribe(Name.COMMANDS, run_id="run-1"), 50)
    assert ids(got) == [envelope.id for envelope in sent]
    assert [d.sequence for d in got] == [p.sequence for p in published] == sorted({p.sequence for p in published})
    assert got[7].envelope == sent[7]


async def test_replay_goes_over_into_live(bus, sender):
    for number in range(3):
        await bus.publish(Name.COMMANDS, command(sender, number))
    reading = asyncio.create_task(first(bus.subscribe(Name.COMMANDS), 6))
    await asyncio.sleep(0.05)
    for number in range(3, 6):
        await bus.publish(Name.COMMANDS, command(sender, number))
    opened = [open_as(d.envelope, control_pb2.ControlCommand).command_id for d in await reading]
    assert opened == [f"c{number}" for number in range(6)]


async def test_replay_from_a_sequence(bus, sender):
    published = [await bus.publish(Name.COMMANDS, command(sender, number)) for number in range(5)]
    got = await first(bus.subscribe(Name.COMMANDS, after_sequence=published[2].sequence), 2)
    assert [d.sequence for d in got] == [published[3].sequence, published[4].sequence]


async def test_replay_from_a_time(bus, sender):
    await bus.publish(Name.COMMANDS, command(sender, 0))
    await asyncio.sleep(0.05)
    border = datetime.now(UTC)
    await asyncio.sleep(0.05)
    late = command(sender, 1)
    await bus.publish(Name.COMMANDS, late)
    assert ids(await first(bus.subscribe(Name.COMMANDS, from_time=border), 1)) == [late.id]


async def test_a_position_outside_the_stream_is_refused_and_not_skipped(bus, sender):
    last = await bus.publish(Name.COMMANDS, command(sender, 0))
    with pytest.raises(errors.OutOfRange, match="ahead of the stream"):
        await first(bus.subscribe(Name.COMMANDS, after_sequence=last.sequence + 1), 1)
    with pytest.raises(errors.InvalidRequest):
        await first(bus.subscribe(Name.COMMANDS, after_sequence=1, from_time=datetime.now(UTC)), 1)
    with pytest.raises(errors.InvalidRequest, match="time zone"):
        await first(bus.subscribe(Name.COMMANDS, from_time=datetime.now()), 1)


async def test_names_of_one_stream_are_kept_apart(bus, sender):
    submitted = job(sender, 1)
    ready = sender.seal(forge_pb2.KernelReady(artifact_id=DIGEST))
    await bus.publish(Name.KERNEL_READY, ready)
    await bus.publish(Name.BLUEPRINT_SUBMITTED, submitted)
    assert ids(await first(bus.subscribe(Name.BLUEPRINT_SUBMITTED), 1)) == [submitted.id]
    assert ids(await first(bus.subscribe(Name.KERNEL_READY), 1)) == [ready.id]


# Runs.


@pytest.mark.parametrize(("mine", "other"), [("run-1", "run-2"), ("a", "a.1"), ("a", "a-1"), ("a.b", "a.b.c")])
async def test_two_runs_never_hear_each_other(bus, sender, mine, other):
    await bus.publish(Name.COMMANDS, command(sender, 1, other))
    await bus.publish(Name.COMMANDS, command(sender, 2, other), rank=1)
    wanted = command(sender, 3, mine)
    await bus.publish(Name.COMMANDS, wanted)
    deliveries = bus.subscribe(Name.COMMANDS, run_id=mine)
    assert (await anext(deliveries)).envelope.id == wanted.id
    await nothing_more(deliveries)


async def test_a_run_hears_all_its_ranks_and_everybody_can_hear_all(bus, sender):
    sent = [command(sender, 1), command(sender, 2), command(sender, 3, "run-2")]
    await bus.publish(Name.COMMANDS, sent[0], rank=0)
    await bus.publish(Name.COMMANDS, sent[1], rank=3)
    await bus.publish(Name.COMMANDS, sent[2])
    assert ids(await first(bus.subscribe(Name.COMMANDS, run_id="run-1"), 2)) == [sent[0].id, sent[1].id]
    assert ids(await first(bus.subscribe(Name.COMMANDS), 3)) == [envelope.id for envelope in sent]


async def test_events_of_no_run_have_a_place(bus, sender):
    ready = sender.seal(forge_pb2.KernelReady(artifact_id=DIGEST))
    await bus.publish(Name.KERNEL_READY, ready)
    assert ids(await first(bus.subscribe(Name.KERNEL_READY, run_id=""), 1)) == [ready.id]


# Duplicates and refusals.


async def test_the_same_envelope_again_is_a_duplicate_and_stored_once(bus, sender):
    envelope = command(sender, 1)
    one = await bus.publish(Name.COMMANDS, envelope)
    again = await bus.publish(Name.COMMANDS, envelope)
    assert (one.duplicate, again.duplicate, again.sequence) == (False, True, one.sequence)
    other = command(sender, 2)
    await bus.publish(Name.COMMANDS, other)
    assert ids(await first(bus.subscribe(Name.COMMANDS), 2)) == [envelope.id, other.id]


async def test_an_unknown_subject_is_refused_by_every_method(bus, sender):
    envelope = command(sender, 1)
    with pytest.raises(errors.InvalidRequest, match=r"telemetry\.sed\.health"):
        await bus.publish("telemetry.sed.health", envelope)
    with pytest.raises(errors.InvalidRequest):
        bus.subscribe("nobody")
    with pytest.raises(errors.InvalidRequest):
        bus.work("nobody", "g")
    with pytest.raises(errors.InvalidRequest):
        await bus.request("nobody", envelope, timeout_s=1)


async def test_a_payload_of_another_subject_is_refused(bus, sender):
    with pytest.raises(errors.InvalidRequest, match=r"does not carry 'esper\.api\.kasmina\.v1\.ControlCommand'"):
        await bus.publish(Name.KERNEL_READY, command(sender, 1))


async def test_an_oversize_envelope_is_refused_with_size_and_limit(bus, sender):
    packet = command(sender, 1)
    packet.payload = b"x" * bus.max_envelope_bytes
    with pytest.raises(errors.Exhausted, match=str(bus.max_envelope_bytes)):
        await bus.publish(Name.COMMANDS, packet)
    assert next(s for s in await bus.streams() if s.name == "control").messages == 0


async def test_the_largest_envelope_fits(bus, sender):
    packet = command(sender, 1)
    packet.payload = b"x" * (bus.max_envelope_bytes - 1024)
    await bus.publish(Name.COMMANDS, packet)
    got = await first(bus.subscribe(Name.COMMANDS), 1)
    assert len(got[0].envelope.payload) == bus.max_envelope_bytes - 1024


# Batches.


async def test_a_batch_is_one_message_in_order(bus, sender):
    batch = [health(sender, step) for step in range(20)]
    published = await bus.publish_batch(Name.SEED_HEALTH, batch)
    assert len({p.sequence for p in published}) == 1
    single = health(sender, 99)
    await bus.publish(Name.SEED_HEALTH, single)
    got = await first(bus.subscribe(Name.SEED_HEALTH, run_id="run-1"), 21)
    assert ids(got) == [envelope.id for envelope in [*batch, single]]
    assert [(d.index, d.count) for d in got[:20]] == [(index, 20) for index in range(20)]
    assert (await bus.publish_batch(Name.SEED_HEALTH, batch))[0].duplicate


async def test_a_batch_on_a_name_without_batches_is_as_many_messages(bus, sender):
    batch = [command(sender, number) for number in range(3)]
    published = await bus.publish_batch(Name.COMMANDS, batch)
    assert len({p.sequence for p in published}) == 3
    assert ids(await first(bus.subscribe(Name.COMMANDS), 3)) == [envelope.id for envelope in batch]


async def test_a_batch_is_of_one_run_and_neither_empty_nor_endless(bus, sender):
    with pytest.raises(errors.InvalidRequest, match="of one run"):
        await bus.publish_batch(Name.SEED_HEALTH, [health(sender, 1), health(sender, 1, "run-2")])
    with pytest.raises(errors.InvalidRequest):
        await bus.publish_batch(Name.SEED_HEALTH, [])
    with pytest.raises(errors.InvalidRequest, match="1025"):
        await bus.publish_batch(Name.SEED_HEALTH, [health(sender, 1)] * 1025)


# Cursors.


async def test_a_consumer_resumes_from_its_own_cursor_in_the_middle_of_a_batch(bus, sender):
    batch = [health(sender, step) for step in range(6)]
    await bus.publish_batch(Name.SEED_HEALTH, batch[:4])
    await bus.publish_batch(Name.SEED_HEALTH, batch[4:])
    store, applied = MemoryCursorStore(), []

    async def apply(envelope):
        if len(applied) == 2:
            raise KeyboardInterrupt  # the process ends here
        applied.append(envelope.id)

    with pytest.raises(KeyboardInterrupt):
        await follow(bus, Name.SEED_HEALTH, await Cursor.open(store, "nissa"), apply)

    async def apply_all(envelope):
        applied.append(envelope.id)

    cursor = await Cursor.open(store, "nissa")
    async with asyncio.timeout(PATIENCE_S):
        task = asyncio.create_task(follow(bus, Name.SEED_HEALTH, cursor, apply_all))
        while len(applied) < 6:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert applied == [envelope.id for envelope in batch]


async def test_a_cursor_of_another_store_is_noticed(bus, sender):
    await bus.publish(Name.COMMANDS, command(sender, 1))
    store = MemoryCursorStore()
    await store.save("k", CursorState(sequence=1000))
    with pytest.raises(errors.OutOfRange):
        await follow(bus, Name.COMMANDS, await Cursor.open(store, "k"), lambda envelope: asyncio.sleep(0))


# Work.


async def test_two_members_share_the_work(bus, sender):
    for number in range(20):
        await bus.publish(Name.BLUEPRINT_SUBMITTED, job(sender, number))
    done = {"a": [], "b": []}

    async def member(name):
        async for item in bus.work(Name.BLUEPRINT_SUBMITTED, "forge"):
            done[name].append(item.envelope.id)
            await asyncio.sleep(0.01)
            await item.ack()

    members = [asyncio.create_task(member(name)) for name in done]
    async with asyncio.timeout(PATIENCE_S):
        while sum(map(len, done.values())) < 20:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    for task in members:
        task.cancel()
    await asyncio.gather(*members, return_exceptions=True)
    assert sorted(done["a"] + done["b"]) == sorted(f"_/tamiyo/0/job-{number}" for number in range(20))
    assert min(map(len, done.values())) >= 4


async def test_groups_do_not_take_from_each_other_nor_from_subscribers(bus, sender):
    envelope = job(sender, 1)
    await bus.publish(Name.BLUEPRINT_SUBMITTED, envelope)
    for group in ("forge", "archive"):
        items = bus.work(Name.BLUEPRINT_SUBMITTED, group)
        item = await asyncio.wait_for(anext(items), PATIENCE_S)
        assert item.envelope.id == envelope.id
        await item.ack()
        await items.aclose()
    assert ids(await first(bus.subscribe(Name.BLUEPRINT_SUBMITTED), 1)) == [envelope.id]


async def test_an_item_that_is_not_settled_is_delivered_again(bus, sender):
    await bus.publish(Name.BLUEPRINT_SUBMITTED, job(sender, 1))
    options = WorkOptions(redeliver_after_s=0.3)
    items = bus.work(Name.BLUEPRINT_SUBMITTED, "forge", options)
    one = await asyncio.wait_for(anext(items), PATIENCE_S)
    two = await asyncio.wait_for(anext(items), PATIENCE_S)
    assert (one.envelope.id, one.deliveries) == (two.envelope.id, 1)
    assert two.deliveries == 2
    await two.ack()
    await nothing_more(items, 0.6)
    with pytest.raises(errors.PreconditionFailed, match="settled already"):
        await two.ack()


async def test_extending_keeps_an_item_from_others(bus, sender):
    await bus.publish(Name.BLUEPRINT_SUBMITTED, job(sender, 1))
    options = WorkOptions(redeliver_after_s=1.0)
    mine, others = (bus.work(Name.BLUEPRINT_SUBMITTED, "forge", options) for _ in range(2))
    item = await asyncio.wait_for(anext(mine), PATIENCE_S)
    waiting = asyncio.ensure_future(anext(others))
    for _ in range(6):
        await asyncio.sleep(0.25)
        await item.extend()
    assert not waiting.done()
    await item.ack()
    await asyncio.sleep(1.1)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_refused_item_comes_again_after_its_delay_and_dies_at_last(bus, sender):
    envelope = job(sender, 1)
    published = await bus.publish(Name.BLUEPRINT_SUBMITTED, envelope)
    items = bus.work(Name.BLUEPRINT_SUBMITTED, "forge", WorkOptions(max_deliveries=3))
    for delivery in (1, 2, 3):
        item = await asyncio.wait_for(anext(items), PATIENCE_S)
        assert item.deliveries == delivery
        await item.nack(f"compiler crashed, {delivery}", delay_s=0.05)
    await nothing_more(items)
    assert await bus.dead_letters(Name.BLUEPRINT_SUBMITTED, "other") == []
    (dead,) = await bus.dead_letters(Name.BLUEPRINT_SUBMITTED, "forge")
    assert (dead.envelope.id, dead.sequence, dead.deliveries) == (envelope.id, published.sequence, 3)
    assert dead.reason == "compiler crashed, 3"


async def test_an_item_whose_members_vanish_each_time_dies_too(bus, sender):
    await bus.publish(Name.BLUEPRINT_SUBMITTED, job(sender, 1))
    later = job(sender, 2)
    items = bus.work(Name.BLUEPRINT_SUBMITTED, "forge", WorkOptions(redeliver_after_s=0.2, max_deliveries=2))
    for _ in range(2):
        await asyncio.wait_for(anext(items), PATIENCE_S)
    waiting = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0.5)
    await bus.publish(Name.BLUEPRINT_SUBMITTED, later)
    assert (await asyncio.wait_for(waiting, PATIENCE_S)).envelope.id == later.id
    (dead,) = await bus.dead_letters(Name.BLUEPRINT_SUBMITTED, "forge")
    assert (dead.deliveries, dead.reason) == (2, "not settled in time")


async def test_work_through_settles_by_what_happens(bus, sender):
    for number in range(3):
        await bus.publish(Name.BLUEPRINT_SUBMITTED, job(sender, number))
    calls = []

    async def do(envelope):
        number = int(envelope.id.rpartition("-")[2])
        calls.append(number)
        if number == 0:
            raise errors.InvalidBlueprint("unknown operator")
        if number == 1 and calls.count(1) == 1:
            raise RuntimeError("worker crashed")
        if number == 2:
            await asyncio.sleep(1.5)  # longer than the redelivery time

    options = WorkOptions(redeliver_after_s=1.0)
    task = asyncio.create_task(
        work_through(bus, Name.BLUEPRINT_SUBMITTED, "forge", do, options=options, retry_delay_s=0.05)
    )
    async with asyncio.timeout(PATIENCE_S):
        while sorted(calls) != [0, 1, 1, 2]:
            await asyncio.sleep(0.02)
    await asyncio.sleep(1.6)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sorted(calls) == [0, 1, 1, 2]
    (dead,) = await bus.dead_letters(Name.BLUEPRINT_SUBMITTED, "forge")
    assert dead.reason == "unknown operator"


async def test_telemetry_is_no_work_and_a_group_has_a_plain_name(bus):
    with pytest.raises(errors.InvalidRequest, match="telemetry"):
        bus.work(Name.SEED_HEALTH, "g")
    with pytest.raises(errors.InvalidRequest, match="work group"):
        bus.work(Name.COMMANDS, "a b")


# Request and reply.


async def test_a_request_is_answered_for_its_run(bus, sender):
    async def handler(envelope):
        return Sender("kasmina/0").seal(control_pb2.CommandOutcome(applied=True), run_id="run-1", cause=envelope)

    question = command(sender, 1)
    async with bus.respond(Name.COMMANDS, handler, run_id="run-1"):
        answer = await bus.request(Name.COMMANDS, question, timeout_s=5)
        assert open_as(answer, control_pb2.CommandOutcome).applied
        assert answer.causation_id == question.id
        with pytest.raises(errors.Unavailable, match="nobody responds"):
            await bus.request(Name.COMMANDS, command(sender, 2, "run-2"), timeout_s=5)
    with pytest.raises(errors.Unavailable, match="nobody responds"):
        await bus.request(Name.COMMANDS, question, timeout_s=5)
    assert next(s for s in await bus.streams() if s.name == "control").messages == 0


async def test_a_responders_error_comes_back_typed_and_a_bug_without_its_text(bus, sender):
    async def refuses(envelope):
        raise errors.IllegalTransition("seed a/0: DORMANT to FOSSILIZED")

    async def breaks(envelope):
        raise RuntimeError("password")

    async with bus.respond(Name.COMMANDS, refuses, run_id="run-1"):
        with pytest.raises(errors.IllegalTransition, match="seed a/0"):
            await bus.request(Name.COMMANDS, command(sender, 1), timeout_s=5)
    async with bus.respond(Name.COMMANDS, breaks, run_id="run-1"):
        with pytest.raises(errors.EsperError, match="RuntimeError") as caught:
            await bus.request(Name.COMMANDS, command(sender, 1), timeout_s=5)
        assert "password" not in str(caught.value)


async def test_a_slow_responder_is_a_deadline_exceeded(bus, sender):
    async def sleeps(envelope):
        await asyncio.sleep(60)
        return envelope

    async with bus.respond(Name.COMMANDS, sleeps, run_id="run-1"):
        with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.1 s"):
            await bus.request(Name.COMMANDS, command(sender, 1), timeout_s=0.1)


# The whole.


async def test_streams_tell_what_they_hold(bus, sender):
    await bus.publish(Name.COMMANDS, command(sender, 1))
    last = await bus.publish(Name.COMMANDS, command(sender, 2))
    states = {state.name: state for state in await bus.streams()}
    control = states["control"]
    assert (control.messages, control.first_sequence, control.last_sequence) == (2, 1, last.sequence)
    assert control.size_bytes > 0
    assert (states["system"].first_sequence, states["system"].last_sequence) == (0, 0)


async def test_close_ends_subscriptions_and_work(bus, sender):
    reading = asyncio.create_task(first(bus.subscribe(Name.COMMANDS), 1))
    working = asyncio.create_task(first(bus.work(Name.COMMANDS, "g"), 1))
    await asyncio.sleep(0.1)
    await bus.close()
    assert await asyncio.wait_for(asyncio.gather(reading, working), 10) == [[], []]
    with pytest.raises(errors.Unavailable):
        await bus.publish(Name.COMMANDS, command(sender, 1), timeout_s=1)
