"""Requests and reports from messages, designs to messages."""

import math

from esper.api.karn.v1 import architect_pb2 as pb
from esper.api.urabrask.v1 import evaluation_pb2
from esper.api.urza.v1 import library_pb2
from esper.blueprint.codec import read_interface, write_graph
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.blueprint.matching import match
from esper.errors import InvalidRequest
from esper.karn.budget import Budget, Prediction, check_budget
from esper.karn.generate import Generated
from esper.karn.opportunity import Found, Opportunity
from esper.karn.predict import Measurement
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


def read_budget(request: pb.GenerateBlueprintsRequest, interface: Interface) -> Budget | None:
    """None: the request has none. Raises InvalidRequest for an input that the interface cannot have."""
    if not request.HasField("budget"):
        return None
    said = request.budget
    budget = Budget(said.target, said.batch, said.positions, said.max_forward_us, said.max_peak_bytes)
    check_budget(budget, interface)
    return budget


def read_measurement(report: evaluation_pb2.Report, kernel: library_pb2.Kernel, graph: Graph) -> Measurement | None:
    """What a report measured of its kernel, whose graph this is; None where it was not measured.

    Raises InvalidRequest where report, kernel and graph do not go together.
    """
    if not (report.forward_us_p50 > 0 and report.peak_bytes and report.input_shape):
        return None
    interface, shape = read_interface(kernel.interface), tuple(report.input_shape)
    positions = shape[2:] if interface.kind.channels_first else shape[1:-1]
    if interface.shape(shape[0], *positions) != shape:
        raise InvalidRequest(f"an input of {list(shape)} is none of {interface}")
    fits, reason = match(graph, interface)
    if not fits:
        raise InvalidRequest(f"the kernel's blueprint: {reason}")
    target = target_name(report.machine.get("cpu", ""), report.machine.get("threads", ""))
    time, peak = report.forward_us_p50, report.peak_bytes
    return Measurement(graph, interface, target, shape[0], math.prod(positions), time, peak)


def target_name(cpu: str, threads: str) -> str:
    """Hardware that figures may be compared on, as populations of reports name it."""
    return f"{cpu}, {threads} threads"


def write_prediction(prediction: Prediction) -> pb.Prediction:
    return pb.Prediction(
        target=prediction.target,
        forward_us=prediction.forward_us,
        peak_bytes=round(prediction.peak_bytes),
        forward_us_error=prediction.forward_us_error,
        peak_bytes_error=prediction.peak_bytes_error,
        measurement_count=prediction.measurement_count,
        input_measured=prediction.input_measured,
    )


def write_generated(design: Generated) -> pb.Design:
    return pb.Design(
        prediction=None if design.prediction is None else write_prediction(design.prediction),
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
