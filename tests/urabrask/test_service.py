"""The evaluator over a wire: every rpc once, every status a client can meet."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from esper.api.common.v1 import operation_pb2, operation_pb2_grpc
from esper.api.urabrask.v1 import evaluation_pb2 as pb
from esper.api.urabrask.v1 import evaluation_pb2_grpc as pb_grpc
from esper.errors import InvalidRequest, NotFound, PreconditionFailed
from esper.rpc.client import open_channel
from esper.rpc.operation_service import OperationServicer
from esper.rpc.operations import Operations
from esper.rpc.server import Server
from esper.urabrask.jail import Isolation
from esper.urabrask.service import EvaluationServicer
from tests.artifact.samples import EVALUATION
from tests.tezzeret.fakes import until

from .test_evaluator import BAD, Hall

Operation = operation_pb2.Operation


@dataclass
class Wire:
    hall: Hall
    evaluation: Any
    operations: Any

    async def ended(self, name: str) -> Operation:
        reply = await self.operations.WaitOperation(operation_pb2.WaitOperationRequest(name=name), timeout=20)
        return reply.operation

    async def evaluate(self, artifact_id: str, request_id: str = "") -> Operation:
        request = pb.CreateEvaluationRequest(artifact_id=artifact_id, request_id=request_id)
        return (await self.evaluation.CreateEvaluation(request)).operation


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    hall, operations = Hall(), Operations()
    server = Server(tokens=None)
    server.mount(pb_grpc.add_EvaluationServiceServicer_to_server, EvaluationServicer(hall.evaluator, operations))
    server.mount(operation_pb2_grpc.add_OperationServiceServicer_to_server, OperationServicer(operations))
    port = await server.start("127.0.0.1:0")
    channel = open_channel(f"127.0.0.1:{port}", token=None)
    try:
        async with hall.evaluator:
            yield Wire(hall, pb_grpc.EvaluationServiceStub(channel), operation_pb2_grpc.OperationServiceStub(channel))
    finally:
        await operations.close()
        await channel.close()
        await server.stop(grace_s=0)


async def test_an_evaluation_is_an_operation_whose_result_is_the_report(wire):
    name = await wire.hall.add()
    operation = await wire.evaluate(name)
    assert operation.kind == "evaluate"
    ended = await wire.ended(operation.name)
    assert ended.state == Operation.STATE_SUCCEEDED
    reply = await wire.evaluation.GetReport(pb.GetReportRequest(name=ended.result_name))
    assert reply.report.artifact_id == name
    assert reply.report.passed


async def test_a_rejection_is_a_success_of_the_operation(wire):
    wire.hall.findings = BAD
    ended = await wire.ended((await wire.evaluate(await wire.hall.add())).name)
    reply = await wire.evaluation.GetReport(pb.GetReportRequest(name=ended.result_name))
    assert not reply.report.passed
    assert reply.report.checks[-1].detail == "returns [1]"


async def test_the_same_request_id_is_the_same_operation(wire):
    name = await wire.hall.add()
    first = await wire.evaluate(name, "r1")
    await wire.ended(first.name)
    assert (await wire.evaluate(name, "r1")).name == first.name


async def test_reports_are_listed_newest_first(wire):
    name = await wire.hall.add()
    for _ in range(2):
        await wire.hall.evaluator.evaluate(name)
    listed = (await wire.evaluation.ListReports(pb.ListReportsRequest(artifact_id=name))).reports
    times = [report.end_time.ToNanoseconds() for report in listed]
    assert len(times) == 2
    assert times == sorted(times, reverse=True)


async def test_refusals_are_statuses(wire):
    with pytest.raises(NotFound, match="no such kernel"):
        await wire.evaluate("f" * 64)
    with pytest.raises(InvalidRequest):
        await wire.evaluate("not an id")
    with pytest.raises(NotFound, match="no such report"):
        await wire.evaluation.GetReport(pb.GetReportRequest(name=f"reports/{'f' * 64}"))
    wire.hall.evaluator.isolation = Isolation("")
    with pytest.raises(PreconditionFailed, match="no isolation was proved here"):
        await wire.evaluate(await wire.hall.add())


async def test_status_tells_what_is_going_on(wire):
    name = await wire.hall.add()
    wire.hall.pool.gate = asyncio.Event()
    operation = await wire.evaluate(name)
    await until(lambda: wire.hall.evaluator.busy == 1)
    status = await wire.evaluation.GetEvaluationStatus(pb.GetEvaluationStatusRequest())
    assert (status.queued, status.busy_workers, status.workers) == (0, 1, 1)
    assert status.isolation == "network namespace"
    assert status.public_key == EVALUATION.public_key
    wire.hall.pool.gate.set()
    await wire.ended(operation.name)
    status = await wire.evaluation.GetEvaluationStatus(pb.GetEvaluationStatusRequest())
    assert (status.promoted, status.rejected, status.busy_workers) == (1, 0, 0)
