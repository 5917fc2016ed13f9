"""gRPC shell of the operations registry."""

from typing import Any

import grpc

from esper.api.common.v1 import operation_pb2 as pb
from esper.api.common.v1 import operation_pb2_grpc as pb_grpc
from esper.api.common.v1 import resource_pb2
from esper.rpc.deadlines import remaining
from esper.rpc.operations import Operations

Context = grpc.aio.ServicerContext[Any, Any]

LONGEST_WAIT_S = 600.0


class OperationServicer(pb_grpc.OperationServiceServicer):
    """Contract: proto/esper/api/common/v1/operation.proto."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def GetOperation(self, request: pb.GetOperationRequest, context: Context) -> pb.GetOperationResponse:
        return pb.GetOperationResponse(header=self._header(), operation=self._operations.get(request.name))

    async def ListOperations(self, request: pb.ListOperationsRequest, context: Context) -> pb.ListOperationsResponse:
        operations, page = self._operations.list(request.page, request.kind)
        return pb.ListOperationsResponse(header=self._header(), operations=operations, page=page)

    async def WaitOperation(self, request: pb.WaitOperationRequest, context: Context) -> pb.WaitOperationResponse:
        left_s = remaining(context, LONGEST_WAIT_S)
        # The reply must arrive before the deadline does.
        wait_s = left_s - min(0.5, left_s / 10)
        if request.HasField("timeout"):
            wait_s = min(wait_s, request.timeout.ToTimedelta().total_seconds())
        operation = await self._operations.wait(request.name, wait_s)
        return pb.WaitOperationResponse(header=self._header(), operation=operation)

    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Context) -> pb.CancelOperationResponse:
        operation = await self._operations.cancel(request.name)
        return pb.CancelOperationResponse(header=self._header(), operation=operation)

    def _header(self) -> resource_pb2.ReplyHeader:
        return resource_pb2.ReplyHeader(revision=self._operations.revision)
