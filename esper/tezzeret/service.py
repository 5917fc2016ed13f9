"""gRPC shell of the compilation forge: read, call the core, write."""

from collections import OrderedDict
from typing import Any

from esper.api.common.v1.operation_pb2 import Operation
from esper.api.common.v1.resource_pb2 import ReplyHeader
from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.api.tezzeret.v1 import forge_pb2_grpc as pb_grpc
from esper.rpc import paging
from esper.rpc.operations import Operations
from esper.tezzeret.codec import Order, number, read_failure, write_target
from esper.tezzeret.forge import Forge

KIND = "compile"
_KEEP_ORDERS = 10_000  # as many as ended operations are kept


class ForgeServicer(pb_grpc.ForgeServiceServicer):
    """Contract: proto/esper/api/tezzeret/v1/forge.proto."""

    def __init__(self, forge: Forge, operations: Operations) -> None:
        self._forge = forge
        self._operations = operations
        self._orders: OrderedDict[str, Order] = OrderedDict()  # by operation

    async def CreateCompilation(
        self, request: pb.CreateCompilationRequest, context: Any
    ) -> pb.CreateCompilationResponse:
        earlier = self._operations.of_request(request.request_id)
        if earlier is not None and earlier.name in self._orders:  # sent again: nothing is ordered
            return self._answer(earlier, self._orders[earlier.name])
        ticket = await self._forge.submit(
            request.blueprint_id, request.interface, request.pipeline, target=request.target
        )

        async def work() -> str:
            record = await self._forge.result(ticket)
            if record.HasField("failure"):
                raise read_failure(record.failure)
            return f"kernels/{record.artifact_id}"

        operation = await self._operations.run(KIND, work, request.request_id)
        ticket.operation_name = ticket.operation_name or operation.name
        return self._answer(operation, self._order_of(operation.name, ticket.order))

    def _answer(self, operation: Operation, order: Order) -> pb.CreateCompilationResponse:
        return pb.CreateCompilationResponse(
            header=self._header(),
            operation=operation,
            pipeline=number(order.pipeline),
            pipeline_reason=order.pipeline_reason,
            target=write_target(order.target),
        )

    def _order_of(self, operation: str, order: Order) -> Order:
        """What an operation is about: `order`, or that which the first request of its id became."""
        while len(self._orders) >= _KEEP_ORDERS:
            self._orders.popitem(last=False)
        return self._orders.setdefault(operation, order)

    async def GetForgeStatus(self, request: pb.GetForgeStatusRequest, context: Any) -> pb.GetForgeStatusResponse:
        forge = self._forge
        return pb.GetForgeStatusResponse(
            header=self._header(),
            queued=forge.queued,
            busy_workers=forge.busy,
            workers=forge.options.workers,
            succeeded=forge.succeeded,
            failed=forge.failed,
            public_key=forge.public_key,
            targets=[write_target(target) for target in forge.options.targets],
        )

    async def ListCompilations(self, request: pb.ListCompilationsRequest, context: Any) -> pb.ListCompilationsResponse:
        wanted = request.blueprint_id
        records = ((n, r) for n, r in self._forge.records() if wanted in ("", r.blueprint_id))
        of = paging.identity("ListCompilations", wanted)
        found, page = paging.page(records, request.page, of, lambda numbered: str(numbered[0]))
        return pb.ListCompilationsResponse(header=self._header(), compilations=[r for _, r in found], page=page)

    def _header(self) -> ReplyHeader:
        return ReplyHeader(revision=self._operations.revision)
