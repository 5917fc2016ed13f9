"""The line to the broker, against servers that are old, foreign, rude or away."""

import asyncio
import contextlib
import json

import pytest

from esper import errors
from esper.oona.connection import Address, Line, LineOptions
from esper.oona.jetstream import JetStreamBus

QUICK = LineOptions(connect_timeout_s=1.0, max_backoff_s=0.1)


class FakeServer:
    """Speaks as much of the protocol as a client needs to ask for the account; `account` is the answer."""

    def __init__(self, account=None, version="2.9.10", after=None):
        self.account = account
        self.version = version
        self.after = after  # called with the writer once the account was asked for
        self.connections = 0
        self.writers = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.talk, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception):
        self.server.close()
        for writer in self.writers:
            writer.close()
        await self.server.wait_closed()

    async def talk(self, reader, writer):
        self.connections += 1
        self.writers.append(writer)
        info = {"server_id": "F", "version": self.version, "headers": True, "max_payload": 1 << 20, "proto": 1}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        inbox_sid = b"1"
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                verb, *words = line.split()
                if verb == b"PING":
                    writer.write(b"PONG\r\n")
                elif verb == b"SUB":
                    inbox_sid = words[-1]
                elif verb in (b"PUB", b"HPUB"):
                    await reader.readexactly(int(words[-1]) + 2)
                    self.reply(writer, words[1], inbox_sid)
                    if self.after is not None:
                        await self.after(writer)

    def reply(self, writer, inbox, sid):
        if self.account is None:
            status = b"NATS/1.0 503\r\n\r\n"
            writer.write(b"HMSG %s %s %d %d\r\n%s\r\n" % (inbox, sid, len(status), len(status), status))
        else:
            data = json.dumps(self.account).encode()
            writer.write(b"MSG %s %s %d\r\n%s\r\n" % (inbox, sid, len(data), data))


def account(level):
    api = {"total": 0, "errors": 0} | ({} if level is None else {"level": level})
    names = "max_memory max_storage max_streams max_consumers max_ack_pending memory_max_stream_bytes"
    limits = dict.fromkeys(f"{names} storage_max_stream_bytes".split(), -1) | {"max_bytes_required": False}
    return {"memory": 0, "storage": 0, "streams": 0, "consumers": 0, "limits": limits, "api": api}


@pytest.mark.parametrize("level", [None, 0])
async def test_an_old_server_is_refused_with_the_remedy(level):
    async with FakeServer(account(level)) as server:
        with pytest.raises(errors.Unavailable, match=rf"2\.9\.10.*API level {level}.*2\.11 or later.*pip install"):
            await JetStreamBus.connect(Address(server.url), timeout_s=5)
        assert server.connections == 1


async def test_a_server_without_jetstream_is_refused_with_the_remedy():
    async with FakeServer(None) as server:
        with pytest.raises(errors.Unavailable, match=r"has no JetStream.*with JetStream"):
            await JetStreamBus.connect(Address(server.url), timeout_s=5)


async def test_a_server_with_answers_of_another_shape_is_refused_with_the_remedy():
    async with FakeServer({"type": "something else"}) as server:
        with pytest.raises(errors.Unavailable, match=r"not understood.*pip install"):
            await JetStreamBus.connect(Address(server.url), timeout_s=5)


async def test_a_server_of_today_passes():
    async with FakeServer(account(5)) as server:
        line = Line(Address(server.url), options=QUICK)
        await line.open(5)
        assert not line.closed
        await line.close()
        assert line.closed


async def test_nobody_there_is_unavailable_in_time_and_by_address():
    with pytest.raises(errors.Unavailable, match=r"no broker answers at nats://127\.0\.0\.1:1 .*start it"):
        await asyncio.wait_for(JetStreamBus.connect(Address("nats://127.0.0.1:1"), timeout_s=0.3), 10)


async def test_a_server_that_comes_late_is_waited_for():
    async with FakeServer(account(5)) as early:
        port = int(early.url.rpartition(":")[2])
    line = Line(Address(f"nats://127.0.0.1:{port}"), options=QUICK)
    opening = asyncio.create_task(line.open(10))
    await asyncio.sleep(0.2)
    late = FakeServer(account(5))
    late.server = await asyncio.start_server(late.talk, "127.0.0.1", port)
    try:
        await asyncio.wait_for(opening, 10)
    finally:
        await line.close()
        await late.__aexit__()


async def test_an_error_of_the_server_ends_one_connection_and_not_the_line():
    """nats-py closes itself for good at any -ERR it does not know."""

    async def rude(writer):
        if server.connections == 1:
            await asyncio.sleep(0.05)
            writer.write(b"-ERR 'Maximum Subscriptions Exceeded'\r\n")

    async with FakeServer(account(5), after=rude) as server:
        line = Line(Address(server.url), options=QUICK)
        await line.open(5)
        first = await line.link()
        await asyncio.wait_for(first.lost.wait(), 10)
        second = await line.link(10)
        assert second is not first
        assert line.connections == 2
        await line.close()


async def test_who_waits_on_a_lost_connection_is_told_at_once():
    async with FakeServer(account(5)) as server:
        line = Line(Address(server.url), options=QUICK)
        await line.open(5)
        link = await line.link()

        async def wait():
            async with link.held(60):
                await asyncio.sleep(60)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.05)
        server.writers[0].transport.abort()
        with pytest.raises(errors.Unavailable, match="is lost"):
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(errors.Unavailable):
            async with link.held(1):
                pass
        await line.close()


async def test_a_timeout_is_no_loss():
    async with FakeServer(account(5)) as server:
        line = Line(Address(server.url), options=QUICK)
        await line.open(5)
        link = await line.link()
        with pytest.raises(errors.DeadlineExceeded):
            async with link.held(0.02):
                await asyncio.sleep(60)
        assert not link.lost.is_set()
        await line.close()


async def test_a_link_is_waited_for_and_not_for_ever():
    server = FakeServer(account(5))
    async with server:
        line = Line(Address(server.url), options=QUICK)
        await line.open(5)
        link = await line.link()
    await asyncio.wait_for(link.lost.wait(), 10)
    with pytest.raises(errors.Unavailable, match="is away"):
        await line.link(0.1)
    waiting = asyncio.create_task(line.link())
    await asyncio.sleep(0.05)
    await line.close()
    with pytest.raises(errors.Unavailable, match="closed"):
        await asyncio.wait_for(waiting, 10)


async def test_a_server_that_becomes_old_is_not_used_again():
    async with FakeServer(account(5)) as server:
        line = Line(Address(server.url), options=QUICK)
        await line.open(5)
        link = await line.link()
        server.account = account(None)
        server.writers[0].transport.abort()
        await asyncio.wait_for(link.lost.wait(), 10)
        with pytest.raises(errors.Unavailable, match="API level None"):
            await line.link(1.0)
        server.account = account(5)
        assert await line.link(10) is not link
        await line.close()


@pytest.mark.parametrize("ends", ["returns", "raises"])
async def test_a_cancellation_that_is_swallowed_below_is_raised_all_the_same(ends):
    """As nats-py does while it flushes, and asyncio.wait_for of Python 3.11 at the end of a wait."""
    async with FakeServer(account(5)) as server:
        line = Line(Address(server.url), options=QUICK)
        await line.open(5)
        link = await line.link()

        async def body():
            async with link.held(10):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
                if ends == "raises":
                    raise TimeoutError

        task = asyncio.create_task(body())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), 5)
        assert task.cancelled()
        await line.close()


async def test_the_line_closes_also_at_the_moment_it_is_lost():
    for spins in range(12):
        async with FakeServer(account(5)) as server:
            line = Line(Address(server.url), options=QUICK)
            await line.open(5)
            await asyncio.sleep(0.02)  # the line watches its link now
            (await line.link()).lost.set()
            for _ in range(spins):
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await line.close()
            assert line.closed


def test_an_address_is_shown_without_what_it_authenticates_with():
    address = Address("nats://user:hunter2@10.0.0.1:4222", token="s3cret")
    assert address.where == "nats://10.0.0.1:4222"
    assert "hunter2" not in repr(address)
    assert "s3cret" not in repr(address)
