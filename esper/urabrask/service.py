"""gRPC shell of the evaluation engine: read, call the core, write."""

from typing import Any

from esper.api.common.v1.resource_pb2 import ReplyHeader
from esper.api.urabrask.v1 import evaluation_pb2 as pb
from esper.api.urabrask.v1 import evaluation_pb2_grpc as pb_grpc
from esper.rpc.operations import Operations
from esper.urabrask.evaluator import Evaluator

KIND = "evaluate"


class EvaluationServicer(pb_grpc.EvaluationServiceServicer):
    """Contract: proto/esper/api/urabrask/v1/evaluation.proto."""

    def __init__(self, evaluator: Evaluator, operations: Operations) -> None:
        self._evaluator = evaluator
        self._operations = operations

    async def CreateEvaluation(self, request: pb.CreateEvaluationRequest, context: Any) -> pb.CreateEvaluationResponse:
        await self._evaluator.admit(request.artifact_id)

        async def work() -> str:
            return f"reports/{(await self._evaluator.evaluate(request.artifact_id)).report_id}"

        operation = await self._operations.run(KIND, work, request.request_id)
        return pb.CreateEvaluationResponse(header=self._header(), operation=operation)

    async def GetReport(self, request: pb.GetReportRequest, context: Any) -> pb.GetReportResponse:
        return pb.GetReportResponse(header=self._header(), report=await self._evaluator.report(request.name))

    async def ListReports(self, request: pb.ListReportsRequest, context: Any) -> pb.ListReportsResponse:
        found, page = await self._evaluator.reports.list_reports(request.artifact_id, request.page)
        reports = [pb.Report.FromString(one.body) for one in found]
        return pb.ListReportsResponse(header=self._header(), reports=reports, page=page)

    async def GetEvaluationStatus(
        self, request: pb.GetEvaluationStatusRequest, context: Any
    ) -> pb.GetEvaluationStatusResponse:
        evaluator = self._evaluator
        return pb.GetEvaluationStatusResponse(
            header=self._header(),
            queued=evaluator.queued,
            busy_workers=evaluator.busy,
            workers=evaluator.options.workers,
            promoted=evaluator.promoted,
            rejected=evaluator.rejected,
            isolation=evaluator.isolation.how,
            public_key=evaluator.public_key,
            unpromotable=evaluator.unpromotable,
            second_pass_queued=evaluator.second_pass.queued,
        )

    def _header(self) -> ReplyHeader:
        return ReplyHeader(revision=self._operations.revision)
