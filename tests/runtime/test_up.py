"""`esper up`: what it says, what it serves, whom it refuses, how it ends."""

import os
import re
import signal
import socket
import stat
from collections.abc import Iterator

import grpc
import psutil
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from esper.rpc.auth import bearer
from esper.runtime.observe import SERVICES
from esper.runtime.serve import COMPONENTS
from tests.runtime.processes import Runtime, esper, gone

NISSA = "esper.api.nissa.v1.ObservabilityService"


@pytest.fixture(scope="module")
def channel(runtime: Runtime) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(runtime.contact.address) as opened:
        yield opened


def methods(channel: grpc.Channel) -> list[MethodDescriptor]:
    """Every method of every service of Esper's that reflection tells of."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    names = [name for name in database.get_services() if name.startswith("esper.")]
    return [method for name in names for method in pool.FindServiceByName(name).methods]


def call(channel: grpc.Channel, method: MethodDescriptor, metadata: list[tuple[str, str]]) -> grpc.StatusCode:
    """Call a method with empty messages; the status it ends with. A stream may go on: its first reply is enough."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    many_in, many_out = method.client_streaming, method.server_streaming
    kind = f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}"
    make = getattr(channel, kind)(path, request_serializer=bytes, response_deserializer=bytes)
    try:
        reply = make(iter([b""]) if many_in else b"", metadata=metadata, timeout=5)
        if many_out:
            next(reply, None)
            reply.cancel()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_it_says_where_it_is_and_how_to_stop_it(runtime):
    address = runtime.contact.address
    assert f"runtime serves on {address}" in runtime.text
    assert re.search(rf"token file\s+{re.escape(str(runtime.home.token_file))}\n", runtime.text)
    assert f"kill {runtime.pid}" in runtime.text
    assert address.startswith("127.0.0.1:")


def test_the_token_is_in_no_output_and_its_file_is_the_owners_alone(runtime):
    token = runtime.contact.token()
    assert len(token) >= 32
    assert token not in runtime.text
    assert stat.S_IMODE(runtime.home.token_file.stat().st_mode) == 0o600
    assert token not in " ".join(word for p in [psutil.Process(runtime.pid), *runtime.family()] for word in p.cmdline())


def test_private_keys_are_the_owners_alone(runtime):
    keys = list((runtime.home.root / "keys").glob("*.pem"))
    assert {key.stem for key in keys} >= {"forge", "evaluation"}
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_every_component_has_a_service_that_reflection_lists(runtime, channel):
    listed = {method.containing_service.full_name for method in methods(channel)}
    assert set(COMPONENTS) == {name.split(".")[2] for name in listed if not name.startswith("esper.api.common.")}
    assert {*SERVICES.values(), NISSA} <= listed


@pytest.mark.parametrize("service", ["", *SERVICES.values(), NISSA])
def test_every_service_is_healthy_for_a_probe_without_token(channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("sent", [[], [bearer("guessed")], [("authorization", "Basic x")]], ids=["no", "wrong", "odd"])
def test_no_method_of_any_service_answers_without_the_token(channel, sent):
    found = {f"{m.containing_service.full_name}/{m.name}": call(channel, m, sent) for m in methods(channel)}
    assert len(found) > 40
    assert {name: code for name, code in found.items() if code is not grpc.StatusCode.UNAUTHENTICATED} == {}


def test_with_the_token_every_unary_method_is_answered_by_its_component(runtime, channel):
    """Empty requests are refused for what they lack or answered; none is a bug, unknown or unauthenticated."""
    fine = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ALREADY_EXISTS"}
    token = [bearer(runtime.contact.token())]
    unary = [m for m in methods(channel) if not m.client_streaming and not m.server_streaming]
    found = {f"{m.containing_service.full_name}/{m.name}": call(channel, m, token).name for m in unary}
    assert {name: code for name, code in found.items() if code not in fine} == {}


def test_only_loopback_is_listened_on(runtime):
    for process in [psutil.Process(runtime.pid), *runtime.family()]:
        listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} <= {"127.0.0.1", "::1"}


def test_workers_have_the_lowest_priority(runtime):
    below = [p for p in runtime.family() if "esper.runtime.warm" in " ".join(p.cmdline())]
    pools = {p.ppid() for p in below if p.ppid() != runtime.pid}
    workers = [p for p in below if p.ppid() in pools]
    assert workers
    assert {p.nice() for p in workers} == {19}


def test_a_second_runtime_on_the_home_is_refused_and_the_first_goes_on(runtime):
    second = esper("up", "--home", str(runtime.home.root), folder=runtime.folder)
    assert second.returncode == 1
    assert f"another process runs the runtime of {runtime.home.root}" in second.stderr
    assert "--home" in second.stderr and "Traceback" not in second.stderr
    assert runtime.contact.pid == runtime.pid


def test_an_address_in_use_is_named_with_the_way_out(nats_server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tried = esper("up", "--home", str(tmp_path / "home"), "--address", f"127.0.0.1:{port}", folder=tmp_path)
    assert tried.returncode == 1
    assert f"port {port} is in use" in tried.stderr and "choose another port" in tried.stderr
    assert "Traceback" not in tried.stderr
    assert not (tmp_path / "home" / "runtime.json").exists()


def test_a_metrics_port_in_use_is_named_with_the_way_out(nats_server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        tried = esper("up", "--home", str(tmp_path / "home"), "--metrics", where, folder=tmp_path)
    assert tried.returncode == 1
    assert where in tried.stderr and "choose another port" in tried.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_it_with_all_it_started(nats_server, tmp_path, short_tmp, number):
    started = Runtime(tmp_path, "--workers", "1")
    family = started.family()
    assert any("nats-server" in " ".join(p.cmdline()) for p in family)
    assert list(short_tmp.glob("esper-*"))
    os.kill(started.pid, number)
    assert started.wait() == 0, started.text
    assert gone(family) == []
    assert not started.home.contact_file.exists()
    assert "Traceback" not in started.text
    assert not list(short_tmp.glob("esper-*")), "sockets are left"


@pytest.mark.slow
def test_a_killed_runtime_leaves_no_process_and_comes_back_where_it_was(nats_server, tmp_path, short_tmp):
    first = Runtime(tmp_path, "--workers", "1")
    family = first.family()
    token, contact = first.contact.token(), first.contact
    first.kill()
    assert gone(family) == []
    again = Runtime(tmp_path, "--workers", "1")
    assert again.contact.token() == token
    assert (again.contact.address, again.contact.broker) == (contact.address, contact.broker)
    assert again.stop() == 0, again.text
