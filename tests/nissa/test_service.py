"""The wire: every rpc over a server of our own, fed by a worker on a bus."""

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.nissa.v1 import observability_pb2_grpc as pb_grpc
from esper.nissa.service import ObservabilityServicer
from esper.nissa.worker import ObservabilityWorker
from esper.oona.cursor import MemoryCursorStore
from esper.oona.envelope import utc_now
from esper.oona.memory import MemoryBus
from esper.rpc.server import Server

from .feed import publish, published, recorded
from .scenario import RUN, at, hello, messages
from .test_audit import tamper

CODE = grpc.StatusCode
TOTAL = len(recorded())


class World:
    """A recorder, its worker on a bus, a server over it, a client."""

    def __init__(self, recorder):
        self.recorder = recorder
        self.bus = MemoryBus()
        self.health = [pb.ServiceHealth(component="urza", serving=True, detail="SERVING")]
        self.now = at(1000).ToDatetime().replace(tzinfo=utc_now().tzinfo)
        self.servicer = ObservabilityServicer(recorder, self.check, linger_s=60, now=lambda: self.now)

    async def check(self):
        return self.health


@pytest.fixture
async def world(recorder, monkeypatch):
    monkeypatch.setattr("esper.nissa.report.draw", lambda *_: {})
    made = World(recorder)
    server = Server(tokens=None, observe=recorder.metrics.observe_call)
    server.mount(pb_grpc.add_ObservabilityServiceServicer_to_server, made.servicer)
    port = await server.start()
    task = asyncio.create_task(ObservabilityWorker(made.bus, recorder, MemoryCursorStore(), report_every_s=0.01).run())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made.stub = pb_grpc.ObservabilityServiceStub(channel)
        yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await server.stop(0)


async def until(condition, timeout_s=20.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def told(world, directory, count=None):
    """The scenario's first envelopes on the bus, and recorded."""
    envelopes = list(published(messages(str(directory))))[:count]
    await publish(world.bus, envelopes)
    if count is None:
        await until(lambda: RUN in world.recorder.run_ids() and world.recorder.run(RUN).log.last_position == TOTAL)
    else:
        await until(lambda: RUN in world.recorder.run_ids())
    return envelopes


async def status_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def watched(world, after=0, timeout=20):
    request = pb.WatchRunRequest(run_id=RUN, after_position=after)
    return [reply.event async for reply in world.stub.WatchRun(request, timeout=timeout)]


async def test_a_run_that_is_over_is_replayed_from_a_position_and_ends(world, run_directory):
    await told(world, run_directory)
    events = await watched(world)
    assert [event.position for event in events] == list(range(1, TOTAL + 1))
    assert {event.WhichOneof("event") for event in events} >= {"hello", "goodbye", "summary"}
    assert [event.position for event in await watched(world, TOTAL - 2)] == [TOTAL - 1, TOTAL]


async def test_watchers_of_a_live_run_see_each_event_once_wherever_they_begin(world, run_directory):
    envelopes = list(published(messages(str(run_directory))))
    await told(world, run_directory, 3)
    watchers = [asyncio.create_task(watched(world, after)) for after in (0, 0, 5)]
    for at_once in range(3, len(envelopes), 4):
        await publish(world.bus, envelopes[at_once : at_once + 4])
        await asyncio.sleep(0.002)
    whole, again, later = await asyncio.wait_for(asyncio.gather(*watchers), 30)
    assert [event.position for event in whole] == list(range(1, TOTAL + 1))
    assert again == whole
    assert later == whole[5:]


async def test_a_completed_run_without_summary_ends_after_a_while(world):
    goodbye = pb.RunEvent(run_id=RUN, time=at(0), goodbye={"step": 5, "completed": True})
    world.recorder.record(pb.RunEvent(run_id=RUN, time=at(0), hello=hello()), "1")
    world.recorder.record(goodbye, "2")
    assert len(await watched(world)) == 2  # long ago, by this clock
    world.now = at(0).ToDatetime().replace(tzinfo=world.now.tzinfo) + timedelta(seconds=59.9)
    assert len(await watched(world)) == 2


async def test_a_watch_ends_with_its_caller(world, run_directory):
    await told(world, run_directory, 3)
    call = world.stub.WatchRun(pb.WatchRunRequest(run_id=RUN), timeout=20)
    assert (await call.read()).event.position == 1
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call.read()
    await until(lambda: not world.recorder.run(RUN).log.watched)


async def test_unknown_runs_are_not_found_and_bad_ids_invalid(world):
    call = world.stub.WatchRun(pb.WatchRunRequest(run_id="run-9"), timeout=5)
    assert (await status_of(call.read()))[0] is CODE.NOT_FOUND
    call = world.stub.WatchRun(pb.WatchRunRequest(run_id="../etc"), timeout=5)
    assert (await status_of(call.read()))[0] is CODE.INVALID_ARGUMENT
    code, details = await status_of(world.stub.CreateReport(pb.CreateReportRequest(run_id="run-9"), timeout=5))
    assert (code, "nothing was heard" in details) == (CODE.NOT_FOUND, True)


async def test_metrics_have_the_run_and_the_calls(world, run_directory):
    await told(world, run_directory)
    await world.stub.GetMetrics(pb.GetMetricsRequest(), timeout=5)
    text = (await world.stub.GetMetrics(pb.GetMetricsRequest(), timeout=5)).text
    assert 'esper_transitions_total{run="run-1",to="FOSSILIZED"} 1.0' in text
    labels = 'code="OK",method="GetMetrics",service="esper.api.nissa.v1.ObservabilityService"'
    assert f"esper_rpc_calls_total{{{labels}}} 1.0" in text


async def audit_pages(world, size, run_id=""):
    token, found = "", []
    while True:
        request = pb.ListAuditEntriesRequest(page=PageRequest(size=size, token=token), run_id=run_id)
        reply = await world.stub.ListAuditEntries(request, timeout=5)
        found.append([entry.position for entry in reply.entries])
        token = reply.page.next_token
        if not token:
            return found


async def test_the_audit_trail_is_paged_oldest_first(world, run_directory):
    await told(world, run_directory)
    assert await audit_pages(world, 3) == [[1, 2, 3], [4, 5, 6], [7, 8]]
    assert await audit_pages(world, 4, RUN) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert await audit_pages(world, 4, "run-9") == [[]]


async def test_a_token_of_another_list_is_refused(world, run_directory):
    await told(world, run_directory)
    first = await world.stub.ListAuditEntries(pb.ListAuditEntriesRequest(page=PageRequest(size=2)), timeout=5)
    assert first.header.revision == 8
    page = PageRequest(size=2, token=first.page.next_token)
    call = world.stub.ListAuditEntries(pb.ListAuditEntriesRequest(page=page, run_id=RUN), timeout=5)
    assert (await status_of(call))[0] is CODE.INVALID_ARGUMENT


async def test_the_audit_trail_is_verified_and_tampering_named(world, run_directory, tmp_path):
    await told(world, run_directory)
    reply = await world.stub.VerifyAuditTrail(pb.VerifyAuditTrailRequest(), timeout=5)
    assert (reply.intact, reply.entries, reply.first_bad_position) == (True, 8, 0)
    tamper(tmp_path / "state" / "audit.sqlite", "UPDATE records SET body = x'ff' WHERE position = 4")
    reply = await world.stub.VerifyAuditTrail(pb.VerifyAuditTrailRequest(), timeout=5)
    assert (reply.intact, reply.first_bad_position) == (False, 4)
    assert (await status_of(audit_pages(world, 100)))[0] is CODE.DATA_LOSS


async def test_a_report_can_be_asked_for_while_the_run_goes_on(world, run_directory):
    await told(world, run_directory, 10)
    reply = await world.stub.CreateReport(pb.CreateReportRequest(run_id=RUN), timeout=20)
    assert Path(reply.path) == run_directory / "report.html"
    assert "not over" in Path(reply.path).read_text()


async def test_reports_that_cannot_be_written_say_why(world, run_directory):
    world.recorder.record(pb.RunEvent(run_id="run-2", queues=pb.Queues()), "q")
    code, details = await status_of(world.stub.CreateReport(pb.CreateReportRequest(run_id="run-2"), timeout=20))
    assert (code, "hello was not heard" in details) == (CODE.FAILED_PRECONDITION, True)
    await told(world, run_directory, 10)
    (run_directory / "report.html").mkdir()
    code, details = await status_of(world.stub.CreateReport(pb.CreateReportRequest(run_id=RUN), timeout=20))
    assert (code, "cannot be written" in details) == (CODE.FAILED_PRECONDITION, True)


async def test_health_is_what_the_services_answer_now(world, run_directory):
    reply = await world.stub.GetSystemHealth(pb.GetSystemHealthRequest(), timeout=5)
    assert reply.healthy
    assert [service.component for service in reply.services] == ["nissa", "urza"]
    world.health.append(pb.ServiceHealth(component="karn", detail="no answer"))
    reply = await world.stub.GetSystemHealth(pb.GetSystemHealthRequest(), timeout=5)
    assert not reply.healthy
