"""gRPC shell of the replay store: read, call, write."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from esper.api.common.v1 import resource_pb2
from esper.api.simic.v1 import replay_pb2 as pb
from esper.api.simic.v1 import replay_pb2_grpc as pb_grpc
from esper.rpc import paging
from esper.simic.dataset import pieces
from esper.simic.store import ReplayStore

Context = grpc.aio.ServicerContext[Any, Any]


class ReplayServicer(pb_grpc.ReplayServiceServicer):
    """Contract: proto/esper/api/simic/v1/replay.proto."""

    def __init__(self, store: ReplayStore) -> None:
        self.store = store

    async def ListExperiences(self, request: pb.ListExperiencesRequest, context: Context) -> pb.ListExperiencesResponse:
        of = paging.identity("ListExperiences", request.filter.SerializeToString(deterministic=True))
        before, size = int(paging.read_token(request.page, of) or 0), paging.size_of(request.page)
        found = self.store.newest(request.filter, before=before, limit=size + 1)
        more = paging.write_token(str(found[size - 1].position), of) if len(found) > size else ""
        return pb.ListExperiencesResponse(
            header=self._header(), experiences=found[:size], page=resource_pb2.PageReply(next_token=more)
        )

    async def SummariseExperiences(
        self, request: pb.SummariseExperiencesRequest, context: Context
    ) -> pb.SummariseExperiencesResponse:
        summaries = self.store.summaries(request.filter, request.by_kernel)
        return pb.SummariseExperiencesResponse(header=self._header(), summaries=summaries)

    async def ExportDataset(
        self, request: pb.ExportDatasetRequest, context: Context
    ) -> AsyncIterator[pb.ExportDatasetResponse]:
        for piece in pieces(self.store.all(request.filter)):
            yield pb.ExportDatasetResponse(data=piece)

    def _header(self) -> resource_pb2.ReplyHeader:
        return resource_pb2.ReplyHeader(revision=self.store.last_position)
