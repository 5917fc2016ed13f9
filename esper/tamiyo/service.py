"""gRPC shell of the strategic controller: read, call, write."""

from pathlib import Path
from typing import Any

import grpc

from esper.api.common.v1 import resource_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2_grpc as pb_grpc
from esper.errors import NotFound
from esper.records import RecordLog
from esper.rpc import paging
from esper.tamiyo.answer import Controller
from esper.tamiyo.policies import POLICIES

Context = grpc.aio.ServicerContext[Any, Any]


class ControllerServicer(pb_grpc.ControllerServiceServicer):
    """Contract: proto/esper/api/tamiyo/v1/controller.proto."""

    def __init__(self, controller: Controller, decisions: RecordLog[pb.Decision]) -> None:
        self.controller = controller
        self.decisions = decisions

    async def Decide(self, request: pb.DecideRequest, context: Context) -> pb.DecideResponse:
        response = await self.controller.answer(request.state)
        response.header.CopyFrom(self._header())
        return response

    async def GetDecision(self, request: pb.GetDecisionRequest, context: Context) -> pb.GetDecisionResponse:
        decision = self.decisions.get(request.decision_id)
        if decision is None:
            raise NotFound(f"no decision {request.decision_id!r}; ids are <run>/<decision point>/<number>")
        return pb.GetDecisionResponse(header=self._header(), decision=decision)

    async def ListDecisions(self, request: pb.ListDecisionsRequest, context: Context) -> pb.ListDecisionsResponse:
        where: dict[str, Any] = {"run_id": request.run_id}
        if request.only_changes:
            where["changes"] = 1
        of = paging.identity("ListDecisions", request.run_id, request.only_changes)
        before = int(paging.read_token(request.page, of) or 0)
        size = paging.size_of(request.page)
        rows = self.decisions.list(where, before=before, limit=size + 1, newest_first=True)
        token = paging.write_token(str(rows[size - 1][0]), of) if len(rows) > size else ""
        return pb.ListDecisionsResponse(
            header=self._header(),
            decisions=[decision for _, decision in rows[:size]],
            page=resource_pb2.PageReply(next_token=token),
        )

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Context) -> pb.ListPoliciesResponse:
        policies = [
            pb.PolicyInfo(name=p.name, description=p.description, uses_nursery=p.uses_nursery)
            for p in POLICIES.values()
        ]
        return pb.ListPoliciesResponse(header=self._header(), policies=policies)

    def _header(self) -> resource_pb2.ReplyHeader:
        return resource_pb2.ReplyHeader(revision=self.decisions.last_position)


def decision_log(path: Path) -> RecordLog[pb.Decision]:
    """Decisions by run, newest last; `changes` is 1 for those that change something."""
    return RecordLog(
        path,
        pb.Decision,
        key=lambda d: d.decision_id,
        columns={"run_id": lambda d: d.run_id, "changes": lambda d: int(d.kind != pb.DECISION_KIND_NONE)},
    )


def answer_log(path: Path) -> RecordLog[pb.DecideResponse]:
    """Whole answers, by run and decision point."""
    return RecordLog(path, pb.DecideResponse, key=lambda r: r.decisions[0].decision_id.rpartition("/")[0])
