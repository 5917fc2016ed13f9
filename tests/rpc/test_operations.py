"""Operations: the registry, and its service over the wire."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf import duration_pb2

from esper import errors
from esper.api.common.v1 import operation_pb2 as pb
from esper.api.common.v1 import operation_pb2_grpc as pb_grpc
from esper.api.common.v1.resource_pb2 import PageRequest
from esper.rpc.client import open_channel
from esper.rpc.operation_service import OperationServicer
from esper.rpc.operations import Operations, Record
from esper.rpc.server import Server

State = pb.Operation


class Clock:
    def __init__(self):
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


class Store:
    """Keeps records by number; fails on request."""

    def __init__(self):
        self.records = {}
        self.broken = False

    async def save(self, record):
        if self.broken:
            raise errors.Exhausted("the disk is full")
        copy = pb.Operation()
        copy.CopyFrom(record.operation)
        self.records[record.number] = Record(record.number, record.request_id, copy)

    async def load(self):
        return [self.records[number] for number in sorted(self.records)]


@pytest.fixture
def operations():
    return Operations(clock=Clock())


async def test_a_life_from_queued_to_succeeded(operations):
    operation, existed = await operations.create("compile")
    assert (operation.state, existed) == (State.STATE_QUEUED, False)
    assert operation.name.startswith("operations/")
    assert (await operations.start(operation.name)).state == State.STATE_RUNNING
    ended = await operations.succeed(operation.name, "kernels/k")
    assert (ended.state, ended.result_name) == (State.STATE_SUCCEEDED, "kernels/k")
    assert ended.end_time.ToDatetime() > ended.create_time.ToDatetime()
    assert operations.revision == 3


@pytest.mark.parametrize("end", ["succeed", "fail", "stopped", "start"])
async def test_what_has_ended_never_changes(operations, end):
    name = (await operations.create("compile"))[0].name
    await operations.start(name)
    before = await operations.succeed(name, "kernels/k")
    arguments = {"succeed": ("x",), "fail": (errors.Corrupt("x"),), "stopped": (), "start": ()}[end]
    with pytest.raises(errors.PreconditionFailed, match="STATE_SUCCEEDED"):
        await getattr(operations, end)(name, *arguments)
    assert operations.get(name) == before
    assert await operations.cancel(name) == before


async def test_queued_work_cannot_succeed_and_running_work_cannot_start_again(operations):
    name = (await operations.create("compile"))[0].name
    with pytest.raises(errors.PreconditionFailed):
        await operations.succeed(name, "x")
    await operations.start(name)
    with pytest.raises(errors.PreconditionFailed):
        await operations.start(name)


async def test_the_same_request_id_is_the_same_operation(operations):
    made = await asyncio.gather(*(operations.create("compile", "request-1") for _ in range(5)))
    assert len({operation.name for operation, _ in made}) == 1
    assert [existed for _, existed in made].count(False) == 1
    with pytest.raises(errors.Conflict, match="request-1"):
        await operations.create("evaluate", "request-1")
    assert (await operations.create("compile"))[0].name != (await operations.create("compile"))[0].name


async def test_run_does_the_work_and_keeps_its_end(operations):
    async def good():
        return "kernels/k"

    async def refused():
        raise errors.InvalidBlueprint("node a: unknown operator 'frobnicate'")

    async def broken():
        raise ZeroDivisionError("secret")

    ends = {}
    for work in (good, refused, broken):
        operation = await operations.run("compile", work)
        ends[work.__name__] = await operations.wait(operation.name, 10)
    assert ends["good"].result_name == "kernels/k"
    assert (ends["refused"].failure.code, ends["refused"].failure.message) == (
        3,
        "node a: unknown operator 'frobnicate'",
    )
    assert ends["broken"].failure.code == 13
    assert "ZeroDivisionError" in ends["broken"].failure.message
    assert "secret" not in ends["broken"].failure.message


async def test_run_with_a_known_request_id_does_nothing_twice(operations):
    count = 0

    async def work():
        nonlocal count
        count += 1
        return "kernels/k"

    first = await operations.run("compile", work, "r")
    await operations.wait(first.name, 10)
    second = await operations.run("compile", work, "r")
    assert (second.name, second.state, count) == (first.name, State.STATE_SUCCEEDED, 1)


async def test_cancel_stops_running_work_and_queued_work(operations):
    started = asyncio.Event()

    async def work():
        started.set()
        await asyncio.sleep(60)
        return "never"

    operation = await operations.run("compile", work)
    await started.wait()
    await operations.cancel(operation.name)
    assert (await operations.wait(operation.name, 10)).state == State.STATE_CANCELLED
    queued = (await operations.create("compile"))[0]
    assert (await operations.cancel(queued.name)).state == State.STATE_CANCELLED


async def test_a_worker_elsewhere_sees_the_request_to_stop(operations):
    asked = []
    name = (await operations.create("compile", on_cancel=lambda: asked.append(1)))[0].name
    await operations.start(name)
    assert not operations.cancel_requested(name)
    assert (await operations.cancel(name)).state == State.STATE_RUNNING
    await operations.cancel(name)
    assert operations.cancel_requested(name)
    assert asked == [1]
    assert (await operations.stopped(name)).state == State.STATE_CANCELLED


async def test_wait_returns_at_the_end_of_the_work_or_of_the_time(operations):
    name = (await operations.create("compile"))[0].name
    assert (await operations.wait(name, 0.01)).state == State.STATE_QUEUED
    waiting = asyncio.create_task(operations.wait(name, 10))
    await operations.fail(name, errors.Corrupt("bad"))
    assert (await waiting).failure.code == 15


async def test_list_is_newest_first_and_by_kind(operations):
    names = [(await operations.create(kind))[0].name for kind in ("a", "b", "a")]
    listed, _ = operations.list(PageRequest())
    assert [operation.name for operation in listed] == names[::-1]
    first, reply = operations.list(PageRequest(size=1), "a")
    second, _ = operations.list(PageRequest(size=1, token=reply.next_token), "a")
    assert [first[0].name, second[0].name] == [names[2], names[0]]
    with pytest.raises(errors.InvalidRequest):
        operations.list(PageRequest(token=reply.next_token), "b")


async def test_a_reader_cannot_change_what_is_kept(operations):
    operation = (await operations.create("compile"))[0]
    operation.state = State.STATE_SUCCEEDED
    assert operations.get(operation.name).state == State.STATE_QUEUED


async def test_records_outlive_the_process_and_a_failed_save_changes_nothing():
    store = Store()
    first = Operations(clock=Clock(), store=store)
    done = (await first.create("compile", "r1"))[0].name
    await first.start(done)
    running = (await first.create("compile", "r2"))[0].name
    await first.start(running)
    await first.succeed(done, "kernels/k")
    store.broken = True
    with pytest.raises(errors.Exhausted):
        await first.succeed(running, "kernels/j")
    assert first.get(running).state == State.STATE_RUNNING
    store.broken = False

    second = Operations(clock=Clock(), store=store)
    assert [operation.name for operation in await second.load()] == [running]
    assert second.get(done).result_name == "kernels/k"
    assert (await second.create("compile", "r2"))[1]
    assert (await second.create("compile", "r3"))[0].name not in (done, running)


async def test_close_leaves_running_work_to_be_found_again():
    store = Store()
    operations = Operations(clock=Clock(), store=store)
    started = asyncio.Event()

    async def work():
        started.set()
        await asyncio.sleep(60)
        return "never"

    operation = await operations.run("compile", work)
    await started.wait()
    await operations.close()
    unfinished = await Operations(store=store).load()
    assert [(o.name, o.state) for o in unfinished] == [(operation.name, State.STATE_RUNNING)]


async def test_old_ended_operations_are_forgotten():
    operations = Operations(clock=Clock(), keep_ended=2)
    names = []
    for index in range(4):
        names.append((await operations.create("compile", f"r{index}"))[0].name)
        await operations.fail(names[-1], errors.Corrupt("x"))
    with pytest.raises(errors.NotFound, match=names[0]):
        operations.get(names[0])
    assert [o.name for o in operations.list(PageRequest())[0]] == names[:1:-1]


@pytest.fixture
async def service(operations):
    server = Server(tokens=None)
    server.mount(pb_grpc.add_OperationServiceServicer_to_server, OperationServicer(operations))
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}", token=None) as channel:
        yield pb_grpc.OperationServiceStub(channel)
    await server.stop(0)


async def test_the_service_gets_lists_and_cancels(operations, service):
    name = (await operations.create("compile"))[0].name
    reply = await service.GetOperation(pb.GetOperationRequest(name=name))
    assert (reply.operation.name, reply.header.revision) == (name, 1)
    assert [o.name for o in (await service.ListOperations(pb.ListOperationsRequest())).operations] == [name]
    cancelled = await service.CancelOperation(pb.CancelOperationRequest(name=name))
    assert cancelled.operation.state == State.STATE_CANCELLED
    with pytest.raises(errors.NotFound):
        await service.GetOperation(pb.GetOperationRequest(name="operations/nobody"))
    with pytest.raises(errors.InvalidRequest):
        await service.GetOperation(pb.GetOperationRequest(name="nobody"))


async def test_a_wait_ends_with_the_work_its_timeout_or_the_deadline(operations, service):
    name = (await operations.create("compile"))[0].name
    request = pb.WaitOperationRequest(name=name, timeout=duration_pb2.Duration(nanos=10_000_000))
    assert (await service.WaitOperation(request)).operation.state == State.STATE_QUEUED
    until_deadline = await service.WaitOperation(pb.WaitOperationRequest(name=name), timeout=1)
    assert until_deadline.operation.state == State.STATE_QUEUED
    waiting = asyncio.ensure_future(service.WaitOperation(pb.WaitOperationRequest(name=name)))
    await asyncio.sleep(0.05)
    await operations.start(name)
    await operations.succeed(name, "kernels/k")
    assert (await waiting).operation.result_name == "kernels/k"
