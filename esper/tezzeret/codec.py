"""The forge's messages <-> what its decisions and its workers read."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from esper.api.common.v1 import blueprint_pb2, interface_pb2, resource_pb2
from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.artifact import canonical_json, frame
from esper.artifact.bundle import Artifact, from_bytes, to_bytes
from esper.blueprint.codec import read_graph, read_interface, write_graph, write_interface
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.errors import (
    Corrupt,
    DeadlineExceeded,
    EsperError,
    Exhausted,
    InvalidRequest,
    KernelFault,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from esper.tezzeret.check import CostLimits

_PIPELINES = {
    pb.PIPELINE_UNSPECIFIED: "fast",
    pb.PIPELINE_FAST: "fast",
    pb.PIPELINE_STANDARD: "standard",
    pb.PIPELINE_AGGRESSIVE: "aggressive",
    pb.PIPELINE_AUTO: "auto",
}
AUTO = "auto"  # an order's word only: what is compiled, and recorded, has another
_PIPELINE_NUMBERS = {"fast": pb.PIPELINE_FAST, "standard": pb.PIPELINE_STANDARD, "aggressive": pb.PIPELINE_AGGRESSIVE}
# Canonical gRPC codes of failures that are stored; calls that fail get theirs from esper.rpc.
_CODES: dict[type[EsperError], int] = {
    InvalidRequest: 3,
    DeadlineExceeded: 4,
    NotFound: 5,
    Exhausted: 8,
    PreconditionFailed: 9,
    Unavailable: 14,
}
_INTERNAL = 13
_MAX_MESSAGE = 2000
_MAX_LIMITS_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Order:
    """What to compile."""

    graph: Graph
    blueprint_id: str
    interface: Interface
    target: str
    pipeline: str
    limits: CostLimits = CostLimits()  # noqa: RUF009  frozen
    pipeline_reason: str = ""  # why this pipeline, where the forge chose it; a worker has no use for it
    limit_s: float = math.inf  # wall time of a worker, from when it has the order


def read_pipeline(number: int) -> str:
    """Raises InvalidRequest for a number the contract does not have."""
    if number not in _PIPELINES:
        raise InvalidRequest(f"pipeline is {number}; it must be one of {sorted(_PIPELINES)}", {"pipeline": "unknown"})
    return _PIPELINES[pb.Pipeline.ValueType(number)]


def read_target(number: int) -> str:
    """A target's name; empty where none is said. Raises InvalidRequest for a number the contract does not have."""
    if number not in resource_pb2.Target.values():
        known = sorted(resource_pb2.Target.values())
        raise InvalidRequest(f"target is {number}; it must be one of {known}", {"target": "unknown"})
    name = resource_pb2.Target.Name(resource_pb2.Target.ValueType(number))
    return name.removeprefix("TARGET_").lower() if number else ""


def write_target(target: str) -> resource_pb2.Target.ValueType:
    """A target's number in the contract."""
    return resource_pb2.Target.Value(f"TARGET_{target.upper()}")


def write_order(order: Order) -> bytes:
    """The payload of a worker's job."""
    request = pb.CreateCompilationRequest(
        blueprint_id=order.blueprint_id,
        interface=write_interface(order.interface),
        pipeline=number(order.pipeline),
    )
    parts = {
        "request": request.SerializeToString(),
        "graph": write_graph(order.graph).SerializeToString(),
        "target": order.target.encode(),
        "limits": canonical_json.write(asdict(order.limits)),
        "limit_s": str(order.limit_s).encode(),
    }
    return frame.pack(parts)


def read_order(payload: bytes) -> Order:
    parts = _parts(payload, ("request", "graph", "target", "limits", "limit_s"))
    request = pb.CreateCompilationRequest.FromString(parts["request"])
    return Order(
        graph=read_graph(blueprint_pb2.Graph.FromString(parts["graph"])),
        blueprint_id=request.blueprint_id,
        interface=read_interface(request.interface),
        target=parts["target"].decode(),
        pipeline=read_pipeline(request.pipeline),
        limits=CostLimits(**canonical_json.read(parts["limits"], "cost limits", _MAX_LIMITS_BYTES)),
        limit_s=float(parts["limit_s"]),
    )


def write_reply(record: pb.CompilationRecord, artifact: Artifact | None) -> bytes:
    """What a worker answers: the record, and the unsigned artifact unless the record holds a failure."""
    parts = {"record": record.SerializeToString()}
    return frame.pack(parts if artifact is None else {**parts, "artifact": to_bytes(artifact)})


def read_reply(reply: bytes) -> tuple[pb.CompilationRecord, Artifact | None]:
    parts = _parts(reply, ("record",))
    record = pb.CompilationRecord.FromString(parts["record"])
    return record, from_bytes(parts["artifact"]) if "artifact" in parts else None


def number(pipeline: str) -> pb.Pipeline.ValueType:
    """A pipeline's number in the contract."""
    return _PIPELINE_NUMBERS[pipeline]


def new_record(blueprint_id: str, interface: interface_pb2.Interface, pipeline: int) -> pb.CompilationRecord:
    return pb.CompilationRecord(
        blueprint_id=blueprint_id, interface=interface, pipeline=pb.Pipeline.ValueType(pipeline or pb.PIPELINE_FAST)
    )


def write_failure(error: Exception) -> resource_pb2.Failure:
    """`error` as a record keeps it."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), _INTERNAL)
    return resource_pb2.Failure(code=code, message=str(error)[:_MAX_MESSAGE])


def read_failure(failure: resource_pb2.Failure) -> EsperError:
    """The error that a record's failure stands for."""
    kind = next((kind for kind, code in _CODES.items() if code == failure.code), KernelFault)
    return kind(failure.message)


def _parts(data: bytes, names: tuple[str, ...]) -> Mapping[str, bytes]:
    parts = frame.unpack(data)
    if missing := [name for name in names if name not in parts]:
        raise Corrupt(f"a frame of {len(data)} bytes lacks {', '.join(missing)}")
    return parts
