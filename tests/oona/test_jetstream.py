"""What only a broker can do to us: crash, forget, fill up, hold what is not ours."""

import asyncio
import contextlib

import pytest
from nats.js import api

from esper import errors
from esper.api.tezzeret.v1 import forge_pb2
from esper.oona.batching import BatchOptions, TelemetryBuffer
from esper.oona.broker import Broker, BrokerOptions
from esper.oona.connection import LineOptions
from esper.oona.consume import work_through
from esper.oona.cursor import Cursor, FileCursorStore, MemoryCursorStore, follow
from esper.oona.envelope import Sender
from esper.oona.jetstream import JetStreamBus
from esper.oona.port import WorkOptions
from esper.oona.subjects import Name

from .conftest import command, crash, health, until

QUICK = LineOptions(max_backoff_s=0.2)


@pytest.fixture
async def connect(broker):
    """Makes buses on the broker, and closes them."""
    made = []

    async def make(**options):
        made.append(await JetStreamBus.connect(broker.address, options=QUICK, **options))
        return made[-1]

    yield make
    for bus in made:
        await bus.close()


@contextlib.asynccontextmanager
async def running(*coroutines):
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def collect(bus, name, into, **options):
    async for delivery in bus.subscribe(name, **options):
        into.append(delivery)


async def js_of(bus):
    """nats-py's own view, to do what an operator would."""
    return (await bus._line.link(10)).js


# Crashes.


async def test_kill_9_in_mid_stream_loses_nothing_and_applies_everything_once(broker, connect, sender, tmp_path):
    publisher, consumer = await connect(), await connect()
    acked, applied, stop = [], [], asyncio.Event()

    async def publish():
        number = 0
        while not stop.is_set():
            number += 1
            envelope = command(sender, number)
            acked.append((await publisher.publish(Name.COMMANDS, envelope)).sequence)

    async def effect(envelope):
        applied.append(envelope.id)

    store = FileCursorStore(tmp_path / "cursors")
    cursor = await Cursor.open(store, "kasmina", save_every=20)
    async with running(publish(), follow(consumer, Name.COMMANDS, cursor, effect, run_id="run-1")) as (publishing, _):
        for round_ in (1, 2, 3):
            await until(lambda goal=round_ * 300: len(acked) >= goal)
            crash(broker)
            await asyncio.sleep(0.1)
            broker.restart()
        await until(lambda: len(acked) >= 1200)
        stop.set()
        await publishing
        await until(lambda: len(applied) >= len(acked))
    assert acked == list(range(1, len(acked) + 1))
    assert applied == [f"run-1/tamiyo/0/c{number}" for number in range(1, len(acked) + 1)]
    assert (publisher.connections, consumer.connections) == (4, 4)
    assert (await Cursor.open(store, "kasmina")).after_sequence == acked[-1]


async def test_kill_9_under_many_publishes_at_once_stores_each_once(broker, connect, sender):
    bus = await connect()
    sent = [command(sender, number) for number in range(600)]
    publishing = [asyncio.create_task(bus.publish(Name.COMMANDS, envelope)) for envelope in sent]
    await until(lambda: sum(task.done() for task in publishing) >= 100)
    crash(broker)
    assert not all(task.done() for task in publishing)
    broker.restart()
    published = await asyncio.gather(*publishing)
    assert bus.retries > 0
    got = []
    async with running(collect(bus, Name.COMMANDS, got)):
        await until(lambda: len(got) >= 600)
        await asyncio.sleep(0.1)
    assert sorted(d.envelope.id for d in got) == sorted(envelope.id for envelope in sent)
    assert {d.envelope.id: d.sequence for d in got} == {
        envelope.id: p.sequence for envelope, p in zip(sent, published, strict=True)
    }


async def test_a_consumer_that_restarts_after_a_crash_goes_on_from_its_file(broker, connect, sender, tmp_path):
    applied = []

    async def effect(envelope):
        applied.append(envelope.id)

    async def consume(count):
        bus = await connect()
        cursor = await Cursor.open(FileCursorStore(tmp_path / "cursors"), "k")
        async with running(follow(bus, Name.COMMANDS, cursor, effect)):
            await until(lambda: len(applied) >= count)

    bus = await connect()
    sent = [command(sender, number) for number in range(20)]
    for envelope in sent[:10]:
        await bus.publish(Name.COMMANDS, envelope)
    await consume(10)
    crash(broker)
    broker.restart()
    for envelope in sent[10:]:
        await bus.publish(Name.COMMANDS, envelope)
    await consume(20)
    assert applied == [envelope.id for envelope in sent]


async def test_a_publish_that_meets_a_crash_is_stored_once(broker, connect, sender):
    bus = await connect()
    envelope = command(sender, 1)
    one = await bus.publish(Name.COMMANDS, envelope)
    crash(broker)
    later = [asyncio.create_task(bus.publish(Name.COMMANDS, command(sender, number))) for number in range(2, 6)]
    await asyncio.sleep(0.2)
    assert not any(task.done() for task in later)
    broker.restart()
    await asyncio.gather(*later)
    again = await bus.publish(Name.COMMANDS, envelope)
    assert (again.duplicate, again.sequence) == (True, one.sequence)
    control = next(s for s in await bus.streams() if s.name == "control")
    assert control.messages == 5


async def test_telemetry_waits_out_a_crash_in_its_buffer(broker, connect, sender):
    bus, got = await connect(), []
    sent = [health(sender, step) for step in range(400)]
    async with running(collect(bus, Name.SEED_HEALTH, got)), TelemetryBuffer(bus, BatchOptions(retry_s=0.05)) as buffer:
        for step, envelope in enumerate(sent):
            if step == 150:
                crash(broker)
            if step == 300:
                broker.restart()
            buffer.offer(Name.SEED_HEALTH, envelope)
            await asyncio.sleep(0.001)
        await buffer.flush(20)
        await until(lambda: len(got) >= 400)
        assert (buffer.published, buffer.dropped) == (400, 0)
    assert [delivery.envelope.id for delivery in got] == [envelope.id for envelope in sent]


async def test_work_survives_a_crash_of_the_broker(broker, connect, sender):
    bus = await connect()
    for number in range(30):
        job = sender.seal(forge_pb2.BlueprintSubmitted(blueprint_id=f"{number:064x}"), key=f"job-{number}")
        await bus.publish(Name.BLUEPRINT_SUBMITTED, job)
    done = []

    async def do(envelope):
        await asyncio.sleep(0.01)
        done.append(envelope.id)

    options = WorkOptions(redeliver_after_s=1.0)
    members = [work_through(await connect(), Name.BLUEPRINT_SUBMITTED, "forge", do, options=options) for _ in range(2)]
    async with running(*members):
        await until(lambda: len(done) >= 8)
        crash(broker)
        await asyncio.sleep(0.05)
        broker.restart()
        await until(lambda: len(set(done)) == 30, timeout_s=40)
    assert await bus.dead_letters(Name.BLUEPRINT_SUBMITTED, "forge") == []


async def test_responders_and_requests_survive_a_crash(broker, connect, sender):
    asking, answering = await connect(), await connect()

    async def handler(envelope):
        return envelope

    question = command(sender, 1)
    async with answering.respond(Name.COMMANDS, handler, run_id="run-1"):
        assert (await asking.request(Name.COMMANDS, question, timeout_s=5)).id == question.id
        crash(broker)
        broker.restart()
        answer = None
        async with asyncio.timeout(20):
            while answer is None:
                with contextlib.suppress(errors.Unavailable):
                    answer = await asking.request(Name.COMMANDS, question, timeout_s=5)
        assert answer.id == question.id


# Away.


async def test_while_the_broker_is_away_commands_wait_then_are_refused(broker, connect, sender):
    bus = await connect(max_waiting=3)
    broker.stop()
    waiting = [
        asyncio.create_task(bus.publish(Name.COMMANDS, command(sender, number), timeout_s=60)) for number in range(3)
    ]
    await asyncio.sleep(0.05)
    with pytest.raises(errors.Exhausted, match=r"3 publishes wait.*at most 3"):
        await bus.publish(Name.COMMANDS, command(sender, 9))
    broker.start()
    assert sorted(p.sequence for p in await asyncio.gather(*waiting)) == [1, 2, 3]
    assert (await bus.publish(Name.COMMANDS, command(sender, 9))).sequence == 4


async def test_a_publish_gives_up_at_its_deadline_and_leaks_no_place(broker, connect, sender):
    bus = await connect(max_waiting=1)
    broker.stop()
    for _ in range(3):
        with pytest.raises(errors.Unavailable, match="is away"):
            await asyncio.wait_for(bus.publish(Name.COMMANDS, command(sender, 1), timeout_s=0.2), 10)
    broker.start()
    assert (await bus.publish(Name.COMMANDS, command(sender, 1))).sequence == 1


async def test_a_cancelled_publish_leaks_no_place(broker, connect, sender):
    bus = await connect(max_waiting=1)
    broker.stop()
    task = asyncio.create_task(bus.publish(Name.COMMANDS, command(sender, 1)))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    broker.start()
    await bus.publish(Name.COMMANDS, command(sender, 2))


# In order, nothing is made anew.


async def test_one_consumer_serves_a_long_subscription_and_one_a_worker(connect, sender):
    bus, got = await connect(), []
    for number in range(60):
        job = sender.seal(forge_pb2.BlueprintSubmitted(blueprint_id=f"{number:064x}"))
        await bus.publish(Name.BLUEPRINT_SUBMITTED, job)
    async with running(collect(bus, Name.SEED_HEALTH, got)):
        for step in range(1000):
            await bus.publish(Name.SEED_HEALTH, health(sender, step))
        await until(lambda: len(got) == 1000)
    items = bus.work(Name.BLUEPRINT_SUBMITTED, "forge")
    for _ in range(60):
        await (await asyncio.wait_for(anext(items), 20)).ack()
    await items.aclose()
    assert bus.reopened == 0


async def test_large_messages_fill_a_pull_and_the_next_goes_on(connect, sender):
    bus, got = await connect(), []
    for number in range(9):
        packet = command(sender, number)
        packet.payload = b"x" * (7 << 20)
        await bus.publish(Name.COMMANDS, packet)
    async with running(collect(bus, Name.COMMANDS, got)):
        await until(lambda: len(got) == 9)
    assert [d.sequence for d in got] == list(range(1, 10))
    assert bus.reopened == 0


# Two trainers.


async def test_two_trainers_on_one_broker_never_hear_each_other(connect):
    heard = {"red": [], "blue": []}
    buses = {run_id: await connect(name=run_id) for run_id in heard}
    listeners = [
        collect(buses[run_id], name, heard[run_id], run_id=run_id)
        for run_id in heard
        for name in (Name.COMMANDS, Name.SEED_HEALTH, Name.EPOCH)
    ]
    async with running(*listeners), TelemetryBuffer(buses["red"]) as red, TelemetryBuffer(buses["blue"]) as blue:
        for step in range(40):
            for run_id, buffer in (("red", red), ("blue", blue)):
                sender = Sender(f"trainer-{run_id}")
                await buses[run_id].publish(Name.COMMANDS, command(sender, step, run_id))
                buffer.offer(Name.SEED_HEALTH, health(sender, step, run_id))
        await until(lambda: all(len(deliveries) == 80 for deliveries in heard.values()))
        await asyncio.sleep(0.1)
    for run_id, deliveries in heard.items():
        assert {d.envelope.run_id for d in deliveries} == {run_id}
        assert len(deliveries) == 80


async def test_two_prefixes_on_one_broker_are_two_buses(connect, sender):
    one, two = await connect(prefix="one"), await connect(prefix="two")
    await one.publish(Name.COMMANDS, command(sender, 1))
    assert {s.messages for s in await two.streams()} == {0}
    assert (await two.publish(Name.COMMANDS, command(sender, 1))).duplicate is False


# What the broker holds.


async def test_what_is_not_ours_on_a_subject_is_skipped_and_counted(connect, sender, caplog):
    bus, got = await connect(), []
    js = await js_of(bus)
    await js.publish("esper.control.kasmina.commands.run-1", b"\xff\xff junk")
    smuggled = command(sender, 1, "run-2")
    await js.publish("esper.control.kasmina.commands.run-1", smuggled.SerializeToString())
    wanted = command(sender, 2)
    await bus.publish(Name.COMMANDS, wanted)
    async with running(collect(bus, Name.COMMANDS, got, run_id="run-1")):
        await until(lambda: len(got) == 1)
    assert got[0].envelope.id == wanted.id
    assert bus.refused == 2
    assert "is skipped" in caplog.text
    item = await asyncio.wait_for(anext(bus.work(Name.COMMANDS, "g")), 20)
    assert item.envelope.id == wanted.id


async def test_a_position_that_retention_dropped_is_told(connect, sender):
    bus = await connect()
    for number in range(10):
        await bus.publish(Name.COMMANDS, command(sender, number))
    await (await js_of(bus)).purge_stream("esper_control", keep=3)
    for after in (1, 5):
        with pytest.raises(errors.OutOfRange, match="oldest kept is 8"):
            await anext(bus.subscribe(Name.COMMANDS, after_sequence=after))
    assert (await anext(bus.subscribe(Name.COMMANDS, after_sequence=7))).sequence == 8
    assert (await anext(bus.subscribe(Name.COMMANDS))).sequence == 8


async def test_a_broker_that_lost_its_store_does_not_look_like_silence(nats_server, tmp_path, sender):
    first = Broker(tmp_path / "one", token="t")
    first.start()
    bus = await JetStreamBus.connect(first.address, options=QUICK)
    applied = []

    async def effect(envelope):
        applied.append(envelope.id)

    for number in range(5):
        await bus.publish(Name.COMMANDS, command(sender, number))
    cursor = await Cursor.open(MemoryCursorStore(), "k")
    async with running(follow(bus, Name.COMMANDS, cursor, effect)) as (following,):
        await until(lambda: len(applied) == 5)
        first.stop()
        with Broker(tmp_path / "two", options=BrokerOptions(port=first.port), token="t"):
            with pytest.raises(errors.OutOfRange, match="another store"):
                await asyncio.wait_for(following, 20)
            await bus.publish(Name.COMMANDS, command(sender, 9))
            await bus.close()


async def test_a_full_command_stream_refuses_what_is_new(connect, sender):
    bus = await connect()
    js = await js_of(bus)
    config = (await js.stream_info("esper_control")).config
    await js.update_stream(config, max_msgs=2)
    await bus.publish(Name.COMMANDS, command(sender, 1))
    await bus.publish(Name.COMMANDS, command(sender, 2))
    with pytest.raises(errors.Exhausted, match="maximum messages"):
        await bus.publish(Name.COMMANDS, command(sender, 3))
    got = []
    async with running(collect(bus, Name.COMMANDS, got)):
        await until(lambda: len(got) == 2)


async def test_a_full_telemetry_stream_drops_what_is_old(connect, sender):
    bus = await connect()
    js = await js_of(bus)
    await js.update_stream((await js.stream_info("esper_telemetry")).config, max_msgs=2)
    for step in range(5):
        await bus.publish(Name.SEED_HEALTH, health(sender, step))
    telemetry = next(s for s in await bus.streams() if s.name == "telemetry")
    assert (telemetry.first_sequence, telemetry.last_sequence) == (4, 5)


async def test_limits_an_operator_has_set_stay(connect):
    js = await js_of(await connect())
    await js.update_stream((await js.stream_info("esper_control")).config, max_age=3600.0)
    await connect()
    assert (await js.stream_info("esper_control")).config.max_age == 3600.0


async def test_a_stream_of_somebody_else_under_our_name_is_refused(connect):
    js = await js_of(await connect(prefix="first"))
    await js.add_stream(api.StreamConfig(name="mine_control", subjects=["something.else"]))
    with pytest.raises(errors.PreconditionFailed, match=r"mine_control.*another bus prefix"):
        await connect(prefix="mine")


async def test_a_stream_that_is_removed_under_us_is_made_again(connect, sender):
    bus = await connect()
    await (await js_of(bus)).delete_stream("esper_control")
    assert (await bus.publish(Name.COMMANDS, command(sender, 1))).sequence == 1
    assert bus.retries > 0


async def test_a_broker_without_room_for_the_streams_says_so(nats_server, tmp_path):
    small = BrokerOptions(max_store_bytes=1 << 20)
    with Broker(tmp_path / "b", options=small) as broker, pytest.raises(errors.Exhausted, match="give the broker more"):
        await JetStreamBus.connect(broker.address)


async def test_an_unsynced_broker_is_not_called_synced(nats_server, tmp_path):
    with Broker(tmp_path / "b", options=BrokerOptions(sync_always=False)) as broker:
        bus = await JetStreamBus.connect(broker.address)
        assert not any(state.sync_always for state in await bus.streams())
        await bus.close()


async def test_a_prefix_is_checked_before_anything_is_connected(broker):
    with pytest.raises(errors.InvalidConfig, match="prefix"):
        await JetStreamBus.connect(broker.address, prefix="a.b")
