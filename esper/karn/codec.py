"""Designs to messages."""

from esper.api.karn.v1 import architect_pb2 as pb
from esper.blueprint.codec import read_interface, write_graph
from esper.errors import InvalidRequest
from esper.karn.generate import Generated
from esper.karn.opportunity import Found, Opportunity
from esper.karn.propose import Design

_KINDS = {
    pb.OPPORTUNITY_KIND_ATTENTION: Opportunity.ATTENTION,
    pb.OPPORTUNITY_KIND_DECOMPOSITION: Opportunity.DECOMPOSITION,
    pb.OPPORTUNITY_KIND_ACTIVATION: Opportunity.ACTIVATION,
    pb.OPPORTUNITY_KIND_NORMALISATION: Opportunity.NORMALISATION,
    pb.OPPORTUNITY_KIND_CAPACITY: Opportunity.CAPACITY,
}
KIND_NUMBERS = {kind: number for number, kind in _KINDS.items()}


def read_opportunity(request: pb.GenerateBlueprintsRequest) -> Found:
    """Raises InvalidRequest for a kind that is not known and an interface that is not set or not one."""
    if not request.HasField("interface"):
        raise InvalidRequest("interface is not set; say what the site offers", {"interface": "is not set"})
    if request.kind not in _KINDS:
        raise InvalidRequest(f"kind is {request.kind}; it must be one of {sorted(_KINDS)}", {"kind": "is not known"})
    evidence = request.evidence or "no evidence given"
    return Found("", read_interface(request.interface), _KINDS[request.kind], evidence, request.max_parameters)


def write_generated(design: Generated) -> pb.Design:
    return pb.Design(
        blueprint_id=design.blueprint_id,
        graph=write_graph(design.graph),
        title=design.title,
        family=design.family,
        parameter_count=design.inference.parameter_count,
        forward_flops_per_position=design.inference.forward_flops_per_position,
        reason=design.reason,
        parent_ids=design.parents,
        moves=design.moves,
    )


def write_design(design: Design) -> pb.Design:
    inference = design.inference
    return pb.Design(
        blueprint_id=design.blueprint_id,
        graph=write_graph(design.template.graph),
        title=design.template.title,
        family=design.template.family,
        source=design.template.source,
        parameter_count=inference.parameter_count if inference else 0,
        forward_flops_per_position=inference.forward_flops_per_position if inference else 0,
        reason=design.reason,
    )
