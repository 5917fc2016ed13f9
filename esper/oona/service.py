"""gRPC shell of the bus, for those who do not speak its native protocol."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from esper.api.common.v1 import resource_pb2
from esper.api.oona.v1 import bus_pb2 as pb
from esper.api.oona.v1 import bus_pb2_grpc as pb_grpc
from esper.oona.envelope import check, unpack
from esper.oona.port import Bus, StreamState
from esper.oona.subjects import find
from esper.rpc.deadlines import remaining
from esper.rpc.validation import validate

Context = grpc.aio.ServicerContext[Any, Any]

LONGEST_PUBLISH_S = 30.0


class BusServicer(pb_grpc.BusServiceServicer):
    """Contract: proto/esper/api/oona/v1/bus.proto. The bus keeps no store of revisions: headers say 0."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def Publish(self, request: pb.PublishRequest, context: Context) -> pb.PublishResponse:
        check(request.name, request.envelope)
        # The interceptor sees bytes; what they hold has rules as well.
        validate(unpack(request.name, request.envelope), "envelope.payload.")
        left_s = remaining(context, LONGEST_PUBLISH_S)
        published = await self._bus.publish(request.name, request.envelope, timeout_s=left_s - min(0.2, left_s / 10))
        return pb.PublishResponse(header=_HEADER, sequence=published.sequence, duplicate=published.duplicate)

    async def Subscribe(self, request: pb.SubscribeRequest, context: Context) -> AsyncIterator[pb.SubscribeResponse]:
        deliveries = self._bus.subscribe(
            find(request.name).name, run_id=request.run_id or None, after_sequence=request.after_sequence
        )
        async for delivery in deliveries:
            yield pb.SubscribeResponse(
                sequence=delivery.sequence, envelope=delivery.envelope, index=delivery.index, count=delivery.count
            )

    async def ListStreams(self, request: pb.ListStreamsRequest, context: Context) -> pb.ListStreamsResponse:
        return pb.ListStreamsResponse(header=_HEADER, streams=map(_write, await self._bus.streams()))


_HEADER = resource_pb2.ReplyHeader()


def _write(state: StreamState) -> pb.StreamInfo:
    return pb.StreamInfo(
        name=state.name,
        messages=state.messages,
        bytes=state.size_bytes,
        first_sequence=state.first_sequence,
        last_sequence=state.last_sequence,
        sync_always=state.sync_always,
    )
