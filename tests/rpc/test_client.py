"""The channel: deadlines set and forwarded, retries, typed errors, request ids."""

import asyncio
import json

import grpc
import pytest

from esper import errors
from esper.api.oona.v1 import bus_pb2
from esper.api.urza.v1 import library_pb2
from esper.rpc.client import ChannelOptions, open_channel, service_config
from esper.rpc.deadlines import remaining
from esper.rpc.server import ServerOptions

from .conftest import Stubs, alias_reply, serving, streams_reply

NOTHING = bus_pb2.ListStreamsRequest()
DIGEST = "a" * 64


def keeping_time(times):
    async def unary(request, context):
        times.append(remaining(context))
        return streams_reply()

    return unary


async def test_no_call_goes_out_without_a_deadline(script):
    times = []
    script.unary = keeping_time(times)

    async def stream_out(request, context):
        times.append(remaining(context))
        yield bus_pb2.SubscribeResponse()

    script.stream_out = stream_out
    async with serving(script, channel_options=ChannelOptions(deadline_s=7, stream_deadline_s=70)) as stubs:
        await stubs.bus.ListStreams(NOTHING)
        await stubs.bus.ListStreams(NOTHING, timeout=3)
        async for _ in stubs.bus.Subscribe(bus_pb2.SubscribeRequest(name="x")):
            pass
    # gRPC rounds what it sends up a little.
    assert 4 < times[0] < 7.1
    assert 0 < times[1] < 3.1
    assert 8 < times[2] < 71


async def test_a_deadline_is_forwarded_downstream(script):
    """A front service calls a second server; the second sees what was left of the caller's deadline."""
    times = []
    script.unary = keeping_time(times)
    async with serving(script) as back:

        async def front(request, context):
            await asyncio.sleep(0.5)
            return await back.bus.ListStreams(NOTHING, timeout=remaining(context))

        front_script = type(script)()
        front_script.unary = front
        async with serving(front_script) as stubs:
            await stubs.bus.ListStreams(NOTHING, timeout=5)
    assert 0 < times[0] < 4.7


async def test_remaining_is_the_servers_limit_where_the_caller_sent_none(script):
    times = []
    script.unary = keeping_time(times)
    async with (
        serving(script, options=ServerOptions(deadline_s=4)) as stubs,
        grpc.aio.insecure_channel(f"127.0.0.1:{stubs.port}") as channel,
    ):
        await channel.unary_unary("/esper.api.oona.v1.BusService/ListStreams")(b"")
    assert 0 < times[0] < 4.1


class Context:
    """The part of a servicer context that `remaining` reads."""

    def __init__(self, left):
        self._left = left

    def time_remaining(self):
        return self._left


def test_remaining_is_capped_and_refuses_when_nothing_is_left():
    assert remaining(Context(5.0), at_most_s=2.0) == 2.0
    assert remaining(Context(1.0), at_most_s=2.0) == 1.0
    assert remaining(Context(None), at_most_s=2.0) == 2.0
    with pytest.raises(errors.DeadlineExceeded):
        remaining(Context(0.0))
    with pytest.raises(errors.InvalidRequest):
        remaining(Context(None))


async def test_an_absent_peer_is_unavailable_and_named():
    async with open_channel("127.0.0.1:1", token=None, options=ChannelOptions(attempts=1)) as channel:
        with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:1/esper"):
            await Stubs(None, 1, channel).bus.ListStreams(NOTHING, timeout=5)


def unavailable_at_first(times, reply):
    count = 0

    async def unary(request, context):
        nonlocal count
        count += 1
        times.append(request)
        if count < 3:
            raise errors.Unavailable("the store is starting")
        return reply

    return unary


async def test_an_idempotent_call_is_retried_while_its_peer_is_unavailable(script, stubs):
    seen = []
    script.unary = unavailable_at_first(seen, streams_reply())
    assert (await stubs.bus.ListStreams(NOTHING)).streams[0].name == "S"
    assert len(seen) == 3


async def test_a_write_gets_one_request_id_for_all_its_attempts(script, stubs):
    seen = []
    script.unary = unavailable_at_first(seen, alias_reply())
    request = library_pb2.SetAliasRequest(alias="best/conv", target_name=f"kernels/{DIGEST}")
    await stubs.library.SetAlias(request)
    assert len(seen) == 3
    assert len({r.request_id for r in seen}) == 1
    assert seen[0].request_id
    assert request.request_id == ""
    seen.clear()
    request.request_id = "mine"
    await stubs.library.SetAlias(request)
    assert [r.request_id for r in seen] == ["mine"]


def test_what_is_retried_is_what_may_be_sent_twice():
    config = json.loads(service_config(4))["methodConfig"][0]
    names = {f"{entry['service'].rpartition('.')[2]}.{entry['method']}" for entry in config["name"]}
    assert {"LibraryService.GetKernel", "LibraryService.SetAlias", "BusService.Publish"} <= names
    assert "TrainerService.Attach" not in names
    assert "ExecutionService.SendCommand" not in names
    assert "LibraryService.CreateKernel" not in names
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert service_config(1) == "{}"


async def test_a_retry_does_not_outlive_the_deadline(script, stubs):
    async def unary(request, context):
        raise errors.Unavailable("never ready")

    script.unary = unary
    with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
        await asyncio.wait_for(stubs.bus.ListStreams(NOTHING, timeout=0.3), 10)


async def test_write_api_of_streams_works_with_typed_errors(script, stubs):
    async def stream_in(requests, context):
        async for _ in requests:
            pass
        raise errors.Untrusted("no signature")

    script.stream_in = stream_in
    call = stubs.library.CreateKernel()
    await call.write(library_pb2.CreateKernelRequest(chunk={"data": b"x"}))
    await call.done_writing()
    with pytest.raises(errors.Untrusted):
        await call


async def test_cancelling_the_caller_is_a_cancellation_and_not_an_error(script, stubs):
    started = asyncio.Event()

    async def unary(request, context):
        started.set()
        await asyncio.sleep(60)

    script.unary = unary

    async def caller():
        return await stubs.bus.ListStreams(NOTHING)

    task = asyncio.create_task(caller())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
