"""The wire: every rpc over a server of our own."""

import json

import grpc
import pytest

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.common.v1.seed_pb2 import SEED_STATE_DORMANT, SEED_STATE_FOSSILIZED
from esper.api.simic.v1 import replay_pb2 as pb
from esper.api.simic.v1 import replay_pb2_grpc as pb_grpc
from esper.rpc.server import Server
from esper.simic.service import ReplayServicer

from .reports import report


@pytest.fixture
async def stub(store):
    server = Server(tokens=None)
    server.mount(pb_grpc.add_ReplayServiceServicer_to_server, ReplayServicer(store))
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.ReplayServiceStub(channel)
    await server.stop(0)


async def status_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def pages(stub, size, **filters):
    token, found = "", []
    while True:
        page = PageRequest(size=size, token=token)
        reply = await stub.ListExperiences(pb.ListExperiencesRequest(page=page, filter=pb.Filter(**filters)), timeout=5)
        found.append([e.report.end_step - 500 for e in reply.experiences])
        token = reply.page.next_token
        if not token:
            return found


async def test_pages_are_newest_first_and_the_last_one_is_never_empty(stub, store):
    for number in range(4):
        store.add(report(number))
    assert await pages(stub, 2) == [[3, 2], [1, 0]]
    assert await pages(stub, 3) == [[3, 2, 1], [0]]
    assert await pages(stub, 2, task_name="nothing") == [[]]


async def test_a_page_does_not_move_when_newer_experiences_come(stub, store):
    for number in range(4):
        store.add(report(number))
    first = await stub.ListExperiences(pb.ListExperiencesRequest(page=PageRequest(size=2)), timeout=5)
    store.add(report(9))
    page = PageRequest(size=2, token=first.page.next_token)
    second = await stub.ListExperiences(pb.ListExperiencesRequest(page=page), timeout=5)
    assert [e.position for e in second.experiences] == [2, 1]
    assert second.header.revision == 5


async def test_a_token_of_another_filter_is_refused(stub, store):
    for number in range(3):
        store.add(report(number))
    first = await stub.ListExperiences(pb.ListExperiencesRequest(page=PageRequest(size=1)), timeout=5)
    page = PageRequest(size=1, token=first.page.next_token)
    request = pb.ListExperiencesRequest(page=page, filter=pb.Filter(task_name="digits"))
    code, details = await status_of(stub.ListExperiences(request, timeout=5))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "was not issued for this list" in details


async def test_sums_over_the_wire(stub, store):
    store.add(report(1, gain=0.1, outcome=SEED_STATE_FOSSILIZED))
    store.add(report(2, gain=0.3))
    reply = await stub.SummariseExperiences(pb.SummariseExperiencesRequest(), timeout=5)
    (summary,) = reply.summaries
    assert (summary.count, summary.fossilised, summary.judged) == (2, 1, 2)
    assert summary.mean_gain == pytest.approx(0.2)
    assert summary.artifact_id == ""
    reply = await stub.SummariseExperiences(pb.SummariseExperiencesRequest(by_kernel=True), timeout=5)
    assert [s.artifact_id for s in reply.summaries] == ["a" * 64]


async def test_the_dataset_arrives_whole(stub, store):
    for number in range(50):
        store.add(report(number, reason="x" * 50_000, features={"depth": float(number)}))
    data, pieces = b"", 0
    async for reply in stub.ExportDataset(pb.ExportDatasetRequest(), timeout=20):
        assert len(reply.data) <= 1 << 20
        data, pieces = data + reply.data, pieces + 1
    assert pieces == 3
    assert [json.loads(line)["feature.depth"] for line in data.splitlines()] == list(range(50))


async def test_a_filter_that_can_find_nothing_is_invalid(stub):
    wrong = pb.Filter(outcome=SEED_STATE_DORMANT)
    code, details = await status_of(stub.SummariseExperiences(pb.SummariseExperiencesRequest(filter=wrong), timeout=5))
    assert (code, "no end of a seed's life" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    call = stub.ExportDataset(pb.ExportDatasetRequest(filter=wrong), timeout=5)
    code, _ = await status_of(call.read())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
