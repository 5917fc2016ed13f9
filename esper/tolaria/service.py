"""gRPC shell of the training orchestrator: read, call the gateway, write."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from esper.api.common.v1 import resource_pb2
from esper.api.tolaria.v1 import trainer_pb2 as pb
from esper.api.tolaria.v1 import trainer_pb2_grpc as pb_grpc
from esper.errors import Corrupt, PreconditionFailed
from esper.rpc import paging
from esper.tolaria.checkpoint import CheckpointStore, read_checkpoint
from esper.tolaria.gateway import Gateway

Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(pb_grpc.TrainerServiceServicer):
    """Contract: proto/esper/api/tolaria/v1/trainer.proto."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AttachRequest], context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        async for response in self.gateway.attach(request_iterator):
            yield response

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        runs = [desk.run for desk in reversed(self.gateway.desks.values())]
        page, reply = paging.page(runs, request.page, paging.identity("ListRuns"), lambda run: run.run_id)
        return pb.ListRunsResponse(header=self._header(), runs=page, page=reply)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        desk = self.gateway.desk(request.run_id)
        return pb.GetRunResponse(header=self._header(), run=desk.run, state=desk.state)

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        desk = self.gateway.desk(request.run_id)
        # every byte of them is read, which takes seconds where they are large
        found = await asyncio.to_thread(list_checkpoints, Path(desk.run.directory) / "checkpoints")
        return pb.ListCheckpointsResponse(header=self._header(), checkpoints=found)

    def _header(self) -> resource_pb2.ReplyHeader:
        return resource_pb2.ReplyHeader(revision=sum(desk.last_sequence for desk in self.gateway.desks.values()))


def list_checkpoints(folder: Path) -> list[pb.CheckpointManifest]:
    """Sound checkpoints, newest first; damaged ones and those of another version are left out."""
    found = []
    for path in CheckpointStore(folder).folders():
        try:
            found.append(read_checkpoint(path))
        except (Corrupt, PreconditionFailed):
            continue
    return found
