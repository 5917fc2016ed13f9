"""What stands before every servicer, over a server and a channel."""

import asyncio
import logging

import grpc
import pytest
from google.protobuf import timestamp_pb2

from esper import errors
from esper.api.oona.v1 import bus_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.api.urza.v1 import library_pb2
from esper.rpc.server import ServerOptions
from esper.rpc.status import classes, status_of

from .conftest import TOKEN, answering, hello, raising, serving, streams_reply, until


class Calls:
    """An observer that remembers."""

    def __init__(self):
        self.seen = []

    def __call__(self, service, method, code, seconds):
        assert seconds >= 0
        self.seen.append((service.rpartition(".")[2], method, code))


def bare(port, token=None):
    """A channel without any of our habits, as a foreign client has."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


async def raw_call(channel, method, payload, metadata=(), timeout=5):
    return await channel.unary_unary(method)(payload, metadata=metadata, timeout=timeout)


LIST = "/esper.api.oona.v1.BusService/ListStreams"
HEALTH = "/grpc.health.v1.Health/Check"


# Errors.


@pytest.mark.parametrize("cls", list(classes()), ids=lambda cls: cls.__name__)
async def test_each_error_has_its_code_and_comes_back_typed(script, stubs, cls):
    script.unary = raising(cls("slot 3: 5 seen, 4 allowed; take another"))
    with pytest.raises(cls) as caught:
        await stubs.bus.ListStreams(bus_pb2.ListStreamsRequest())
    assert type(caught.value) is cls
    assert str(caught.value) == "slot 3: 5 seen, 4 allowed; take another"
    async with bare(stubs.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await raw_call(channel, LIST, b"")
        assert raw.value.code() is status_of(cls("x"))


async def test_an_unexpected_error_tells_its_class_only_and_is_logged(script, stubs, caplog):
    script.unary = raising(ValueError("password is hunter2"))
    with caplog.at_level(logging.ERROR), pytest.raises(errors.EsperError) as caught:
        await stubs.bus.ListStreams(bus_pb2.ListStreamsRequest())
    assert "ValueError" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" in caplog.text
    async with bare(stubs.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await raw_call(channel, LIST, b"")
        assert raw.value.code() is grpc.StatusCode.INTERNAL
        assert "hunter2" not in repr(raw.value) + repr(list(raw.value.trailing_metadata()))


async def test_an_error_in_the_middle_of_each_kind_of_stream_is_typed(script, stubs):
    async def stream_out(request, context):
        yield bus_pb2.SubscribeResponse(sequence=1)
        raise errors.Corrupt("kernel k: sha256 differs")

    async def stream_in(requests, context):
        async for _ in requests:
            raise errors.Untrusted("no signature")

    async def both(requests, context):
        async for _ in requests:
            yield trainer_pb2.AttachResponse()
            raise errors.Conflict("run-1: another process is attached")

    script.stream_out, script.stream_in, script.both = stream_out, stream_in, both
    seen = []
    with pytest.raises(errors.Corrupt):
        async for reply in stubs.bus.Subscribe(bus_pb2.SubscribeRequest(name="x")):
            seen.append(reply.sequence)
    assert seen == [1]

    async def upload():
        yield library_pb2.CreateKernelRequest(chunk={"data": b"x"})

    with pytest.raises(errors.Untrusted):
        await stubs.library.CreateKernel(upload())

    async def attach():
        yield hello()

    with pytest.raises(errors.Conflict):
        async for _ in stubs.trainer.Attach(attach()):
            pass


async def test_a_servicer_may_end_the_call_itself(script):
    async def unary(request, context):
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "position 3 is gone")

    script.unary = unary
    calls = Calls()
    async with serving(script, observe=calls) as stubs, bare(stubs.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await raw_call(channel, LIST, b"")
        assert (raw.value.code(), raw.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "position 3 is gone")
        await until(lambda: bool(calls.seen))
    assert calls.seen == [("BusService", "ListStreams", "OUT_OF_RANGE")]


async def test_a_method_without_code_is_unimplemented(stubs):
    async with bare(stubs.port) as channel:
        for method in ("/esper.api.tolaria.v1.TrainerService/ListRuns", "/esper.api.oona.v1.BusService/Nothing"):
            with pytest.raises(grpc.aio.AioRpcError) as raw:
                await raw_call(channel, method, b"")
            assert raw.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Validation.


async def test_violations_carry_field_paths(script, stubs):
    script.unary = answering(bus_pb2.PublishResponse())
    envelope = bus_pb2.Envelope(id="", sender="s" * 200, payload_type="x")
    with pytest.raises(errors.InvalidRequest) as caught:
        await stubs.bus.Publish(bus_pb2.PublishRequest(name="telemetry", envelope=envelope))
    assert set(caught.value.fields) == {"envelope.id", "envelope.sender", "envelope.send_time"}


async def test_a_valid_message_passes(script, stubs):
    script.unary = answering(bus_pb2.PublishResponse(sequence=4))
    envelope = bus_pb2.Envelope(id="a", sender="s", payload_type="x", send_time=timestamp_pb2.Timestamp(seconds=1))
    assert (await stubs.bus.Publish(bus_pb2.PublishRequest(name="t", envelope=envelope))).sequence == 4


async def test_unary_stream_requests_are_validated(script, stubs):
    async def stream_out(request, context):
        yield bus_pb2.SubscribeResponse()

    script.stream_out = stream_out
    with pytest.raises(errors.InvalidRequest) as caught:
        async for _ in stubs.bus.Subscribe(bus_pb2.SubscribeRequest()):
            pass
    assert list(caught.value.fields) == ["name"]


async def test_every_message_of_an_inbound_stream_is_validated(script, stubs):
    arrived = []

    async def both(requests, context):
        async for request in requests:
            arrived.append(request.WhichOneof("message"))
            yield trainer_pb2.AttachResponse()

    script.both = both

    async def attach():
        yield hello()
        yield hello("not a run id")

    with pytest.raises(errors.InvalidRequest) as caught:
        async for _ in stubs.trainer.Attach(attach()):
            pass
    assert list(caught.value.fields) == ["hello.run_id"]
    assert arrived == ["hello"]


async def test_bytes_that_are_no_message_are_refused_without_a_python_error(stubs):
    async with bare(stubs.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await raw_call(channel, LIST, b"\xff\xff\xff")
    assert raw.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# Authentication.


@pytest.mark.parametrize(
    "metadata", [(), (("authorization", "Bearer wrong"),), (("authorization", TOKEN),), (("authorization", "Bearer "),)]
)
async def test_without_the_token_nothing_runs(script, metadata):
    ran = []

    async def unary(request, context):
        ran.append(request)
        return streams_reply()

    script.unary = unary
    async with serving(script, tokens={TOKEN, "other"}) as stubs, bare(stubs.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await raw_call(channel, LIST, b"", metadata)
        assert raw.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert TOKEN not in raw.value.details()
    assert ran == []


async def test_with_the_token_calls_pass_and_health_is_open(script):
    script.unary = answering(streams_reply())
    async with serving(script, tokens={TOKEN, "other"}, token=TOKEN) as stubs, bare(stubs.port) as channel:
        assert (await stubs.bus.ListStreams(bus_pb2.ListStreamsRequest())).streams[0].name == "S"
        assert await raw_call(channel, HEALTH, b"") == b"\x08\x01"


async def test_streams_need_the_token_too(script):
    async def stream_out(request, context):
        yield bus_pb2.SubscribeResponse()

    script.stream_out = stream_out
    async with serving(script, tokens={TOKEN}, token="wrong") as stubs:
        with pytest.raises(errors.Unauthenticated):
            async for _ in stubs.bus.Subscribe(bus_pb2.SubscribeRequest(name="x")):
                pass


# Deadlines.


async def test_the_server_ends_a_call_that_sent_no_deadline(script):
    async def unary(request, context):
        await asyncio.sleep(60)

    script.unary = unary
    calls = Calls()
    options = ServerOptions(deadline_s=0.05)
    async with serving(script, options=options, observe=calls) as stubs, bare(stubs.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await raw_call(channel, LIST, b"", timeout=None)
    assert raw.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.05 s" in raw.value.details()
    assert calls.seen == [("BusService", "ListStreams", "DEADLINE_EXCEEDED")]


async def test_a_sent_deadline_overrules_the_servers_and_cancels_the_servicer(script):
    cancelled = asyncio.Event()

    async def unary(request, context):
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    script.unary = unary
    calls = Calls()
    async with serving(script, observe=calls) as stubs:
        with pytest.raises(errors.DeadlineExceeded):
            await stubs.bus.ListStreams(bus_pb2.ListStreamsRequest(), timeout=0.1)
        await asyncio.wait_for(cancelled.wait(), 10)
        await until(lambda: bool(calls.seen))
    assert calls.seen == [("BusService", "ListStreams", "DEADLINE_EXCEEDED")]


async def test_a_stream_lives_longer_than_a_unary_call_may(script):
    async def stream_out(request, context):
        for sequence in range(3):
            await asyncio.sleep(0.06)
            yield bus_pb2.SubscribeResponse(sequence=sequence)

    script.stream_out = stream_out
    async with serving(script, options=ServerOptions(deadline_s=0.05)) as stubs, bare(stubs.port) as channel:
        call = channel.unary_stream("/esper.api.oona.v1.BusService/Subscribe")(
            bus_pb2.SubscribeRequest(name="x").SerializeToString()
        )
        assert len([reply async for reply in call]) == 3


async def test_a_timeout_inside_a_servicer_is_a_bug_and_not_the_deadline(script, stubs):
    script.unary = raising(TimeoutError("some socket"))
    with pytest.raises(errors.EsperError) as caught:
        await stubs.bus.ListStreams(bus_pb2.ListStreamsRequest())
    assert type(caught.value) is errors.EsperError
    assert "TimeoutError" in str(caught.value)


# Metrics and streams.


async def test_every_finished_call_is_observed(script):
    script.unary = answering(streams_reply())
    calls = Calls()
    async with serving(script, observe=calls) as stubs:
        await stubs.bus.ListStreams(bus_pb2.ListStreamsRequest())
        with pytest.raises(errors.InvalidRequest):
            await stubs.bus.Publish(bus_pb2.PublishRequest())
        await until(lambda: len(calls.seen) == 2)
    assert calls.seen == [("BusService", "ListStreams", "OK"), ("BusService", "Publish", "INVALID_ARGUMENT")]


async def test_a_caller_that_leaves_frees_what_the_servicer_holds(script):
    freed = asyncio.Event()

    async def stream_out(request, context):
        try:
            for sequence in range(10**6):
                yield bus_pb2.SubscribeResponse(sequence=sequence)
                await asyncio.sleep(0.001)
        finally:
            freed.set()

    script.stream_out = stream_out
    calls = Calls()
    async with serving(script, observe=calls) as stubs:
        call = stubs.bus.Subscribe(bus_pb2.SubscribeRequest(name="x"))
        async for _ in call:
            break
        call.cancel()
        await asyncio.wait_for(freed.wait(), 10)
        await until(lambda: bool(calls.seen))
    assert calls.seen == [("BusService", "Subscribe", "CANCELLED")]


async def test_stream_unary_and_stream_stream_carry_messages_in_order(script, stubs):
    async def stream_in(requests, context):
        data = [request.chunk.data async for request in requests]
        return library_pb2.CreateKernelResponse(kernel={"artifact_id": b"".join(data).decode()})

    async def both(requests, context):
        async for request in requests:
            yield trainer_pb2.AttachResponse(decision={"sequence": request.progress.step})

    script.stream_in, script.both = stream_in, both

    async def upload():
        for letter in (b"a", b"b", b"c"):
            yield library_pb2.CreateKernelRequest(chunk={"data": letter})

    assert (await stubs.library.CreateKernel(upload())).kernel.artifact_id == "abc"

    async def attach():
        for step in range(20):
            yield trainer_pb2.AttachRequest(sequence=step + 1, progress={"step": step})

    assert [r.decision.sequence async for r in stubs.trainer.Attach(attach())] == list(range(20))
