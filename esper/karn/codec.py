"""Designs to messages."""

from esper.api.karn.v1 import architect_pb2 as pb
from esper.blueprint.codec import write_graph
from esper.karn.propose import Design


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
