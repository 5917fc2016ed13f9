"""gRPC shell of the architectural sculptor: read, call, write."""

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from esper.api.common.v1 import resource_pb2
from esper.api.emrakul.v1 import sculptor_pb2 as pb
from esper.api.emrakul.v1 import sculptor_pb2_grpc as pb_grpc
from esper.api.kasmina.v1 import control_pb2
from esper.emrakul.advice import Sculptor
from esper.errors import PreconditionFailed
from esper.rpc import paging

Context = grpc.aio.ServicerContext[Any, Any]
# Sends a command to a run after checking run and seed.
Send = Callable[[control_pb2.ControlCommand], Awaitable[None]]
# The fossils of a run that can be probed. Raises NotFound, PreconditionFailed.
Probeable = Callable[[str], Awaitable[control_pb2.Probe]]


class SculptorServicer(pb_grpc.SculptorServiceServicer):
    """Contract: proto/esper/api/emrakul/v1/sculptor.proto."""

    def __init__(self, sculptor: Sculptor, send: Send, probeable: Probeable) -> None:
        self.sculptor = sculptor
        self.send = send
        self.probeable = probeable

    async def Advise(self, request: pb.AdviseRequest, context: Context) -> pb.AdviseResponse:
        response = await self.sculptor.advise(request.state)
        response.header.CopyFrom(self._header())
        return response

    async def ListProbes(self, request: pb.ListProbesRequest, context: Context) -> pb.ListProbesResponse:
        of = paging.identity("ListProbes", request.run_id)
        before, size = int(paging.read_token(request.page, of) or 0), paging.size_of(request.page)
        rows = self.sculptor.findings.list({"run_id": request.run_id}, before=before, limit=size + 1, newest_first=True)
        token = paging.write_token(str(rows[size - 1][0]), of) if len(rows) > size else ""
        page = resource_pb2.PageReply(next_token=token)
        findings = [finding for _, finding in rows[:size]]
        return pb.ListProbesResponse(header=self._header(), findings=findings, page=page)

    async def RequestProbe(self, request: pb.RequestProbeRequest, context: Context) -> pb.RequestProbeResponse:
        probe = await self.probeable(request.run_id)
        command = _command(request.run_id, f"operator/{probe.probe_id}", "asked for by an operator")
        command.probe.CopyFrom(probe)
        await self.send(command)
        return pb.RequestProbeResponse(header=self._header(), probe_id=probe.probe_id)

    async def RemoveFossil(self, request: pb.RemoveFossilRequest, context: Context) -> pb.RemoveFossilResponse:
        removable = await self.probeable(request.seed.run_id)
        if not any((s.site, s.slot) == (request.seed.site, request.seed.slot) for s in removable.seeds):
            able = ", ".join(f"{s.site}/{s.slot}" for s in removable.seeds)
            raise PreconditionFailed(
                f"{request.seed.site}/{request.seed.slot} is no fossil kept as a branch, and nothing else can be "
                f"removed; run {request.seed.run_id!r} has {able}"
            )
        command = _command(request.seed.run_id, _key("remove", request), request.reason)
        command.remove.seed.CopyFrom(request.seed)
        await self.send(command)
        return pb.RemoveFossilResponse(header=self._header(), command_id=command.command_id)

    async def RestoreFossil(self, request: pb.RestoreFossilRequest, context: Context) -> pb.RestoreFossilResponse:
        command = _command(request.seed.run_id, _key("restore", request), request.reason)
        command.restore.seed.CopyFrom(request.seed)
        await self.send(command)
        return pb.RestoreFossilResponse(header=self._header(), command_id=command.command_id)

    def _header(self) -> resource_pb2.ReplyHeader:
        return resource_pb2.ReplyHeader(revision=self.sculptor.findings.last_position)


def _key(verb: str, request: pb.RemoveFossilRequest | pb.RestoreFossilRequest) -> str:
    """What makes a request one: its id, if it has one. The id may be longer than a command's."""
    identity = request.request_id or secrets.token_hex(16)
    return f"operator/{verb}/{hashlib.sha256(identity.encode()).hexdigest()[:32]}"


def _command(run_id: str, key: str, reason: str) -> control_pb2.ControlCommand:
    return control_pb2.ControlCommand(command_id=f"{run_id}/{key}", run_id=run_id, issuer="operator", reason=reason)
