"""gRPC shell of the generative architect: read, call the core, write. It keeps no store."""

from typing import Any

from esper.api.karn.v1 import architect_pb2 as pb
from esper.api.karn.v1 import architect_pb2_grpc as pb_grpc
from esper.blueprint.codec import read_interface
from esper.errors import InvalidRequest
from esper.karn.codec import write_design
from esper.karn.propose import DEFAULT_LIMIT, propose, templates


class ArchitectServicer(pb_grpc.ArchitectServiceServicer):
    """Contract: proto/esper/api/karn/v1/architect.proto."""

    async def ListTemplates(self, request: pb.ListTemplatesRequest, context: Any) -> pb.ListTemplatesResponse:
        interface = read_interface(request.interface) if request.HasField("interface") else None
        return pb.ListTemplatesResponse(designs=[write_design(design) for design in templates(interface)])

    async def ProposeBlueprints(
        self, request: pb.ProposeBlueprintsRequest, context: Any
    ) -> pb.ProposeBlueprintsResponse:
        if not request.HasField("interface"):
            raise InvalidRequest("interface is not set; say what the site offers", {"interface": "is not set"})
        interface = read_interface(request.interface)
        designs = propose(interface, request.max_parameters, request.limit or DEFAULT_LIMIT)
        return pb.ProposeBlueprintsResponse(designs=[write_design(design) for design in designs])
