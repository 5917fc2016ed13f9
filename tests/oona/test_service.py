"""The bus over gRPC."""

import asyncio

import grpc
import pytest

from esper import errors
from esper.api.kasmina.v1 import control_pb2
from esper.api.oona.v1 import bus_pb2 as pb
from esper.api.oona.v1 import bus_pb2_grpc as pb_grpc
from esper.oona.memory import MemoryBus
from esper.oona.service import BusServicer
from esper.oona.subjects import Name
from esper.rpc.client import open_channel
from esper.rpc.server import Server

from .conftest import health


def valid(sender, number, run_id="run-1"):
    message = control_pb2.ControlCommand(command_id=f"c{number}", run_id=run_id, issuer="operator", reason="because")
    message.pause.paused = True
    return sender.seal(message, run_id=run_id, key=f"c{number}")


@pytest.fixture
def bus():
    return MemoryBus(max_messages=5)


@pytest.fixture
async def stub(bus):
    server = Server(tokens=None)
    server.mount(pb_grpc.add_BusServiceServicer_to_server, BusServicer(bus))
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}", token=None) as channel:
        yield pb_grpc.BusServiceStub(channel)
    await bus.close()
    await server.stop(0)


async def subscribed(stub, count, **request):
    found = []
    call = stub.Subscribe(pb.SubscribeRequest(**request), timeout=20)
    async for reply in call:
        found.append(reply)
        if len(found) == count:
            break
    call.cancel()
    return found


async def test_publish_and_subscribe(stub, sender):
    one = valid(sender, 1)
    reply = await stub.Publish(pb.PublishRequest(name=Name.COMMANDS, envelope=one))
    assert (reply.sequence, reply.duplicate) == (1, False)
    assert (await stub.Publish(pb.PublishRequest(name=Name.COMMANDS, envelope=one))).duplicate
    two = valid(sender, 2, "run-2")
    await stub.Publish(pb.PublishRequest(name=Name.COMMANDS, envelope=two))
    assert [r.envelope for r in await subscribed(stub, 2, name=Name.COMMANDS)] == [one, two]
    assert [r.sequence for r in await subscribed(stub, 1, name=Name.COMMANDS, after_sequence=1)] == [2]
    assert [r.envelope for r in await subscribed(stub, 1, name=Name.COMMANDS, run_id="run-2")] == [two]


async def test_a_subscription_goes_live(stub, sender):
    reading = asyncio.create_task(subscribed(stub, 1, name=Name.SEED_HEALTH))
    await asyncio.sleep(0.1)
    envelope = health(sender, 3)
    await stub.Publish(pb.PublishRequest(name=Name.SEED_HEALTH, envelope=envelope))
    assert (await reading)[0].envelope == envelope


async def test_an_unknown_name_is_invalid(stub, sender):
    with pytest.raises(errors.InvalidRequest, match="nothing"):
        await stub.Publish(pb.PublishRequest(name="nothing", envelope=valid(sender, 1)))
    with pytest.raises(errors.InvalidRequest, match="nothing"):
        await subscribed(stub, 1, name="nothing")
    with pytest.raises(errors.InvalidRequest, match="run id"):
        await subscribed(stub, 1, name=Name.COMMANDS, run_id="Not A Run")


async def test_the_payloads_own_rules_hold_for_foreign_publishers(stub, sender):
    envelope = sender.seal(control_pb2.ControlCommand(command_id="c1", run_id="run-1"), run_id="run-1")
    with pytest.raises(errors.InvalidRequest) as caught:
        await stub.Publish(pb.PublishRequest(name=Name.COMMANDS, envelope=envelope))
    assert {"envelope.payload.issuer", "envelope.payload.reason", "envelope.payload.action"} == set(caught.value.fields)
    envelope = valid(sender, 1)
    envelope.payload = b"\xff"
    with pytest.raises(errors.InvalidRequest, match="bytes are no"):
        await stub.Publish(pb.PublishRequest(name=Name.COMMANDS, envelope=envelope))


async def test_a_position_that_is_gone_is_out_of_range(bus, stub, sender):
    for number in range(12):
        await bus.publish(Name.SEED_HEALTH, health(sender, number))
    for after, words in ((2, "dropped by retention"), (99, "ahead of the stream")):
        with pytest.raises(errors.OutOfRange, match=words) as caught:
            await subscribed(stub, 1, name=Name.SEED_HEALTH, after_sequence=after)
        assert caught.value.__cause__.code() is grpc.StatusCode.OUT_OF_RANGE
    assert (await subscribed(stub, 1, name=Name.SEED_HEALTH))[0].sequence == 8


async def test_a_full_stream_is_exhausted(stub, sender):
    for number in range(5):
        await stub.Publish(pb.PublishRequest(name=Name.COMMANDS, envelope=valid(sender, number)))
    with pytest.raises(errors.Exhausted, match="full"):
        await stub.Publish(pb.PublishRequest(name=Name.COMMANDS, envelope=valid(sender, 9)))


async def test_streams_are_listed(stub, sender):
    await stub.Publish(pb.PublishRequest(name=Name.COMMANDS, envelope=valid(sender, 1)))
    streams = {s.name: s for s in (await stub.ListStreams(pb.ListStreamsRequest())).streams}
    assert (streams["control"].messages, streams["control"].last_sequence) == (1, 1)
    assert list(streams) == sorted(streams)
    assert not streams["control"].sync_always


async def test_a_closed_bus_is_unavailable(bus, stub, sender):
    await bus.close()
    with pytest.raises(errors.Unavailable, match="closed"):
        await stub.Publish(pb.PublishRequest(name=Name.COMMANDS, envelope=valid(sender, 1)), timeout=1)
