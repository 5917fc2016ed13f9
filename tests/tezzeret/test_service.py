"""The forge over a wire: every rpc once, every status a client can meet."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from esper.api.common.v1 import operation_pb2, operation_pb2_grpc
from esper.api.common.v1.resource_pb2 import TARGET_CPU, PageRequest
from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.api.tezzeret.v1 import forge_pb2_grpc as pb_grpc
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface, Kind
from esper.errors import Exhausted, InvalidBlueprint, InvalidRequest, NotFound, Unavailable
from esper.karn.templates import TEMPLATES
from esper.rpc.client import open_channel
from esper.rpc.operation_service import OperationServicer
from esper.rpc.operations import Operations
from esper.rpc.server import Server
from esper.tezzeret.forge import ForgeOptions
from esper.tezzeret.service import ForgeServicer
from tests.artifact.samples import FORGE

from .fakes import until
from .test_forge import Shop

MAP = write_interface(Interface(Kind.MAP2D, 8))
Operation = operation_pb2.Operation


@dataclass
class Wire:
    shop: Shop
    forge: Any
    operations: Any

    async def ended(self, name: str) -> Operation:
        reply = await self.operations.WaitOperation(operation_pb2.WaitOperationRequest(name=name), timeout=20)
        return reply.operation


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    shop, operations = Shop(ForgeOptions(max_queued=1)), Operations()
    server = Server(tokens=None)
    server.mount(pb_grpc.add_ForgeServiceServicer_to_server, ForgeServicer(shop.forge, operations))
    server.mount(operation_pb2_grpc.add_OperationServiceServicer_to_server, OperationServicer(operations))
    port = await server.start("127.0.0.1:0")
    channel = open_channel(f"127.0.0.1:{port}", token=None)
    try:
        async with shop.forge:
            yield Wire(shop, pb_grpc.ForgeServiceStub(channel), operation_pb2_grpc.OperationServiceStub(channel))
    finally:
        await operations.close()
        await channel.close()
        await server.stop(grace_s=0)


def order(blueprint: str, interface: Any = MAP, **more: Any) -> pb.CreateCompilationRequest:
    return pb.CreateCompilationRequest(blueprint_id=blueprint, interface=interface, **more)


async def test_a_compilation_is_an_operation_whose_result_is_the_kernel(wire):
    blueprint = wire.shop.library.add(TEMPLATES["conv3"].graph)
    reply = await wire.forge.CreateCompilation(order(blueprint))
    assert reply.operation.kind == "compile"
    assert reply.header.revision > 0
    ended = await wire.ended(reply.operation.name)
    (artifact,) = wire.shop.library.kernels
    assert ended.result_name == f"kernels/{artifact}"
    listed = await wire.forge.ListCompilations(pb.ListCompilationsRequest())
    assert [record.operation_name for record in listed.compilations] == [reply.operation.name]


async def test_whoever_leaves_the_choice_is_told_what_it_became(wire):
    blueprint = wire.shop.library.add(TEMPLATES["conv3"].graph)
    reply = await wire.forge.CreateCompilation(order(blueprint, pipeline=pb.PIPELINE_AUTO, request_id="r1"))
    assert (reply.pipeline, reply.target) == (pb.PIPELINE_FAST, TARGET_CPU)
    assert reply.pipeline_reason == "interest 0.00 is not over 0.7"
    await wire.ended(reply.operation.name)
    (record,) = (await wire.forge.ListCompilations(pb.ListCompilationsRequest())).compilations
    assert (record.pipeline, record.target, record.pipeline_reason) == (
        reply.pipeline, reply.target, reply.pipeline_reason,
    )  # fmt: skip
    again = await wire.forge.CreateCompilation(order(blueprint, pipeline=pb.PIPELINE_FAST, request_id="r1"))
    assert (again.operation.name, again.pipeline_reason) == (reply.operation.name, reply.pipeline_reason)
    named = await wire.forge.CreateCompilation(order(blueprint))
    assert (named.pipeline, named.pipeline_reason) == (pb.PIPELINE_FAST, "")


async def test_status_says_what_kernels_are_made_for(wire):
    assert list((await wire.forge.GetForgeStatus(pb.GetForgeStatusRequest())).targets) == [TARGET_CPU]


async def test_the_same_request_id_is_the_same_operation(wire):
    blueprint = wire.shop.library.add(TEMPLATES["conv3"].graph)
    first = await wire.forge.CreateCompilation(order(blueprint, request_id="r1"))
    second = await wire.forge.CreateCompilation(order(blueprint, request_id="r1"))
    assert first.operation.name == second.operation.name
    await wire.ended(first.operation.name)
    third = await wire.forge.CreateCompilation(order(blueprint, request_id="r1"))
    assert (third.operation.name, third.pipeline) == (first.operation.name, first.pipeline)
    assert wire.shop.pool.runs == ["compile"]


async def test_a_compilation_that_fails_is_a_failed_operation(wire):
    blueprint = wire.shop.library.add(TEMPLATES["conv3"].graph)
    wire.shop.pool.failures = [Unavailable("the worker died"), Unavailable("the worker died")]
    reply = await wire.forge.CreateCompilation(order(blueprint))
    ended = await wire.ended(reply.operation.name)
    assert ended.state == Operation.STATE_FAILED
    assert ended.failure.code == 14
    assert ended.failure.message == "the worker died (2 of 2 attempts)"


async def test_refusals_are_statuses(wire):
    blueprint = wire.shop.library.add(TEMPLATES["conv3"].graph)
    with pytest.raises(NotFound, match="no such blueprint"):
        await wire.forge.CreateCompilation(order("f" * 64))
    with pytest.raises(InvalidBlueprint, match="conv needs positions"):
        await wire.forge.CreateCompilation(order(blueprint, write_interface(Interface(Kind.VECTOR, 8))))
    with pytest.raises(InvalidRequest):
        await wire.forge.CreateCompilation(pb.CreateCompilationRequest(blueprint_id=blueprint))
    with pytest.raises(Unavailable, match="ask for fast"):
        await wire.forge.CreateCompilation(order(blueprint, pipeline=pb.PIPELINE_AGGRESSIVE))
    with pytest.raises(InvalidRequest, match=r"page\.token"):
        await wire.forge.ListCompilations(pb.ListCompilationsRequest(page=PageRequest(token="x")))


async def test_a_full_queue_is_exhausted_and_status_shows_it(wire):
    wire.shop.pool.gate = asyncio.Event()
    names = [wire.shop.library.add(TEMPLATES[t].graph) for t in ("conv3", "low_rank", "wide_mlp")]
    await wire.forge.CreateCompilation(order(names[0]))
    await until(lambda: wire.shop.forge.busy == 1)
    await wire.forge.CreateCompilation(order(names[1]))
    with pytest.raises(Exhausted, match="holds 1 orders"):
        await wire.forge.CreateCompilation(order(names[2]))
    status = await wire.forge.GetForgeStatus(pb.GetForgeStatusRequest())
    assert (status.queued, status.busy_workers, status.workers) == (1, 1, 1)
    assert (status.succeeded, status.failed) == (0, 0)
    assert status.public_key == FORGE.public_key
    wire.shop.pool.gate.set()


async def test_a_queued_operation_that_is_cancelled_leaves_the_queue(wire):
    wire.shop.pool.gate = asyncio.Event()
    names = [wire.shop.library.add(TEMPLATES[t].graph) for t in ("conv3", "low_rank")]
    await wire.forge.CreateCompilation(order(names[0]))
    await until(lambda: wire.shop.forge.busy == 1)
    waiting = await wire.forge.CreateCompilation(order(names[1]))
    await until(lambda: wire.shop.forge.queued == 1)
    await wire.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=waiting.operation.name))
    assert (await wire.ended(waiting.operation.name)).state == Operation.STATE_CANCELLED
    await until(lambda: wire.shop.forge.queued == 0)
    wire.shop.pool.gate.set()


async def test_an_operation_at_work_that_is_cancelled_ends_its_worker_and_stores_nothing(wire):
    wire.shop.pool.gate = asyncio.Event()
    reply = await wire.forge.CreateCompilation(order(wire.shop.library.add(TEMPLATES["conv3"].graph)))
    await until(lambda: wire.shop.pool.runs)
    await wire.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=reply.operation.name))
    assert (await wire.ended(reply.operation.name)).state == Operation.STATE_CANCELLED
    await until(lambda: wire.shop.forge.busy == 0)
    assert wire.shop.pool.ended == 1
    assert not wire.shop.library.kernels
    assert not (await wire.forge.ListCompilations(pb.ListCompilationsRequest())).compilations


async def test_one_of_two_operations_that_is_cancelled_leaves_the_other_its_kernel(wire):
    wire.shop.pool.gate = asyncio.Event()
    blueprint = wire.shop.library.add(TEMPLATES["conv3"].graph)
    first, second = [(await wire.forge.CreateCompilation(order(blueprint))).operation.name for _ in range(2)]
    await until(lambda: wire.shop.pool.runs)
    await wire.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=first))
    assert (await wire.ended(first)).state == Operation.STATE_CANCELLED
    wire.shop.pool.gate.set()
    artifact = (await wire.ended(second)).result_name.removeprefix("kernels/")
    assert artifact in wire.shop.library.kernels
    assert wire.shop.pool.runs == ["compile"]


async def test_compilations_are_listed_by_page_and_blueprint(wire):
    names = [wire.shop.library.add(TEMPLATES[t].graph) for t in ("conv3", "low_rank")]
    for name in (*names, names[0]):
        await wire.shop.forge.compile(name, MAP)
    first = await wire.forge.ListCompilations(pb.ListCompilationsRequest(page=PageRequest(size=2)))
    assert [r.blueprint_id for r in first.compilations] == [names[0], names[1]]
    rest = await wire.forge.ListCompilations(
        pb.ListCompilationsRequest(page=PageRequest(size=2, token=first.page.next_token))
    )
    assert [r.blueprint_id for r in rest.compilations] == [names[0]]
    of_one = await wire.forge.ListCompilations(pb.ListCompilationsRequest(blueprint_id=names[1]))
    assert [r.blueprint_id for r in of_one.compilations] == [names[1]]
