"""gRPC shell of the generative architect: read, call the core, write. It keeps no store."""

import asyncio
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from esper.api.karn.v1 import architect_pb2 as pb
from esper.api.karn.v1 import architect_pb2_grpc as pb_grpc
from esper.blueprint.codec import read_interface
from esper.blueprint.interface import Kind
from esper.blueprint.ir import Graph
from esper.errors import InvalidRequest
from esper.karn.budget import Allowance
from esper.karn.codec import read_budget, read_opportunity, write_design, write_generated
from esper.karn.feasible import Limits
from esper.karn.generate import generate, parents_of_the_library
from esper.karn.measured import Measurements
from esper.karn.propose import DEFAULT_LIMIT, propose, templates

_DEFAULT_DESIGNS = 1

# The archive's designs for a kind of interface, by blueprint id.
Tried = Callable[[Kind], Mapping[str, Graph]]


class ArchitectServicer(pb_grpc.ArchitectServiceServicer):
    """Contract: proto/esper/api/karn/v1/architect.proto."""

    def __init__(self, measurements: Measurements, tried: Tried) -> None:
        self._measurements = measurements
        self._tried = tried

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

    async def GenerateBlueprints(
        self, request: pb.GenerateBlueprintsRequest, context: Any
    ) -> pb.GenerateBlueprintsResponse:
        found, rng = read_opportunity(request), Random(request.seed)
        exclude, limit = set(request.excluded_blueprint_ids), request.limit or _DEFAULT_DESIGNS
        budget = read_budget(request, found.interface)
        allowance = None
        if budget is not None:
            allowance = Allowance(budget, await self._measurements.predictor(budget.target))
        parents = {**parents_of_the_library(), **self._tried(found.interface.kind)}
        # arithmetic for up to a few seconds: not on the loop that serves the others
        made, reason = await asyncio.to_thread(generate, found, rng, parents, limit, exclude, Limits(), allowance)
        made.sort(key=lambda design: design.family not in request.preferred_tags)
        return pb.GenerateBlueprintsResponse(designs=[write_generated(one) for one in made], reason=reason)
