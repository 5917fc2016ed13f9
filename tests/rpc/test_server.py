"""The server around the servicers: health, reflection, channelz, ports, limits, stop."""

import asyncio
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from esper import errors
from esper.api.oona.v1 import bus_pb2, bus_pb2_grpc
from esper.rpc.client import ChannelOptions, open_channel
from esper.rpc.server import Server, ServerOptions, serve_until

from .conftest import Bus, answering, serving, streams_reply

BUS = "esper.api.oona.v1.BusService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_is_per_service_and_watch_sees_the_change(stubs):
    health = health_pb2_grpc.HealthStub(stubs.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=BUS), timeout=10)
    replies = aiter(watch)
    assert (await anext(replies)).status == SERVING
    await stubs.server.set_serving(BUS, False)
    assert (await anext(replies)).status == NOT_SERVING
    other = await health.Check(health_pb2.HealthCheckRequest(service="esper.api.urza.v1.LibraryService"))
    assert other.status == SERVING
    watch.cancel()


async def test_health_of_an_unknown_service_is_not_found(stubs):
    health = health_pb2_grpc.HealthStub(stubs.channel)
    with pytest.raises(errors.NotFound):
        await health.Check(health_pb2.HealthCheckRequest(service="nobody"))


async def test_reflection_lists_the_mounted_services(stubs):
    def read():
        with grpc.insecure_channel(f"127.0.0.1:{stubs.port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            return set(database.get_services()), database.FindFileContainingSymbol(BUS).name

    services, file = await asyncio.to_thread(read)
    assert {*stubs.server.services, "grpc.health.v1.Health"} <= services
    assert BUS in services
    assert file == "esper/api/oona/v1/bus.proto"


async def test_channelz_knows_the_server(script):
    async with serving(script, tokens={"t"}, token="t") as stubs:
        channelz = channelz_pb2_grpc.ChannelzStub(stubs.channel)
        assert len((await channelz.GetServers(channelz_pb2.GetServersRequest())).server) >= 1


async def test_a_port_in_use_is_refused_by_number(stubs):
    second = Server(tokens=None)
    with pytest.raises(errors.Unavailable, match=rf"port {stubs.port} is in use.*choose another"):
        await second.start(f"127.0.0.1:{stubs.port}")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("203.0.113.1:0", "203.0.113.1 is not an address of this machine; choose one that is, e.g. 127.0.0.1"),
        ("no.such.host.invalid:0", r"no.such.host.invalid is no address \(.*\); choose one of this machine's"),
    ],
    ids=["elsewhere", "unknown"],
)
async def test_an_address_that_is_not_ours_is_refused_by_host(address, words):
    with pytest.raises(errors.Unavailable, match=f"cannot listen on {address}: {words}") as refusal:
        await Server(tokens=None).start(address)
    assert "in use" not in str(refusal.value)


async def test_an_oversize_request_is_exhausted_on_both_sides(script):
    script.unary = answering(bus_pb2.PublishResponse())
    small = ServerOptions(max_message_bytes=64 * 1024)
    async with serving(script, options=small) as stubs:
        request = bus_pb2.PublishRequest(name="x", envelope=bus_pb2.Envelope(payload=b"x" * 100_000))
        with pytest.raises(errors.Exhausted):
            await stubs.bus.Publish(request)
    async with serving(script, channel_options=ChannelOptions(max_message_bytes=64 * 1024)) as stubs:
        with pytest.raises(errors.Exhausted):
            await stubs.bus.Publish(request)


async def test_twelve_megabytes_fit(script):
    async def unary(request, context):
        return bus_pb2.PublishResponse(sequence=len(request.envelope.payload))

    script.unary = unary
    async with serving(script) as stubs:
        envelope = bus_pb2.Envelope(id="a", sender="s", payload_type="x", payload=b"x" * (12 << 20))
        envelope.send_time.GetCurrentTime()
        assert (await stubs.bus.Publish(bus_pb2.PublishRequest(name="x", envelope=envelope))).sequence == 12 << 20


async def test_stop_lets_a_call_in_flight_finish_and_takes_no_new_one(script):
    entered, leave = asyncio.Event(), asyncio.Event()

    async def unary(request, context):
        entered.set()
        await leave.wait()
        return streams_reply()

    script.unary = unary
    async with serving(script, channel_options=ChannelOptions(attempts=1)) as stubs:
        inflight = asyncio.ensure_future(stubs.bus.ListStreams(bus_pb2.ListStreamsRequest()))
        await entered.wait()
        stopping = asyncio.create_task(stubs.server.stop(grace_s=10))
        await asyncio.sleep(0.05)
        with pytest.raises(errors.Unavailable):
            await stubs.bus.ListStreams(bus_pb2.ListStreamsRequest(), timeout=2)
        leave.set()
        assert (await inflight).streams[0].name == "S"
        await stopping


async def test_serve_until_stops_with_its_event(script):
    server = Server(tokens=None)
    server.mount(bus_pb2_grpc.add_BusServiceServicer_to_server, Bus(script))
    await server.start()
    stop = asyncio.Event()
    running = asyncio.create_task(serve_until(server, stop, grace_s=0))
    stop.set()
    await asyncio.wait_for(running, 10)
    await asyncio.wait_for(server.wait(), 10)


def certificate():
    """A key and a certificate for 127.0.0.1, signed with itself, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, made.public_bytes(encoding)


async def test_with_credentials_both_sides_speak_tls_and_show_who_they_are(script):
    script.unary = answering(streams_reply())
    key, mine = certificate()
    other_key, other = certificate()
    credentials = grpc.ssl_server_credentials([(key, mine)], mine, require_client_auth=True)
    known = grpc.ssl_channel_credentials(mine, key, mine)
    unknown = [None, grpc.ssl_channel_credentials(mine), grpc.ssl_channel_credentials(mine, other_key, other)]
    request = bus_pb2.ListStreamsRequest()
    async with Server(tokens=None, credentials=credentials) as server:
        server.mount(bus_pb2_grpc.add_BusServiceServicer_to_server, Bus(script))
        target = f"127.0.0.1:{await server.start()}"
        async with open_channel(target, token=None, credentials=known) as channel:
            assert (await bus_pb2_grpc.BusServiceStub(channel).ListStreams(request)).streams[0].name == "S"
        for shown in unknown:
            once = ChannelOptions(attempts=1)
            async with open_channel(target, token=None, credentials=shown, options=once) as channel:
                with pytest.raises(errors.Unavailable):
                    await bus_pb2_grpc.BusServiceStub(channel).ListStreams(request, timeout=5)
