"""Messages to and from the small frozen types that the library's decisions read."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import interface_pb2, resource_pb2
from esper.api.common.v1.blueprint_pb2 import Graph
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import InvalidRequest
from esper.urza.ledger import Entry

MAX_SEARCH_LIMIT = 1000
DEFAULT_SEARCH_LIMIT = 20
# What a column of the store holds; the wire's uint64 goes further.
MAX_STORED_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class InterfaceKey:
    """An interface by value: equal keys, equal interface."""

    kind: int
    channels: int
    element_type: int
    causal: bool


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a body says about one of its files."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class KernelBody:
    """What the library reads out of an artifact's body."""

    blueprint_id: str
    interface: InterfaceKey
    target: int
    pipeline: str
    parameter_count: int
    forward_flops_per_position: int
    files: Mapping[str, FileEntry]

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files.values())


@dataclass(frozen=True, slots=True)
class Scope:
    """Which kernels a search is about. Target 0: any."""

    interface: InterfaceKey
    target: int
    status: int


@dataclass(frozen=True, slots=True)
class Wish:
    """The part of a search that ranks. Limits of 0 stand for none."""

    required_tags: frozenset[str]
    preferred_tags: frozenset[str]
    excluded_tags: frozenset[str]
    max_parameters: int
    max_forward_us: float
    max_peak_bytes: int
    max_risk: float
    min_interest: float
    interest_weight: float
    limit: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """What ranking reads of a kernel. A figure of 0, parameters apart, was not measured."""

    artifact_id: str
    status: int
    target: int
    blueprint: int  # the revision that created its blueprint
    parameter_count: int
    forward_us_p50: float
    peak_bytes: int
    interest: float
    risk: float
    tags: frozenset[str]


def read_interface(message: interface_pb2.Interface) -> InterfaceKey:
    """Raises InvalidRequest naming the field that was never sent."""
    for field in ("kind", "channels", "element_type"):
        if not getattr(message, field):
            raise InvalidRequest(f"interface.{field} is not set", {f"interface.{field}": "must be set"})
    return InterfaceKey(message.kind, message.channels, message.element_type, message.causal)


def write_interface(key: InterfaceKey) -> interface_pb2.Interface:
    return interface_pb2.Interface(
        kind=interface_pb2.TensorKind.ValueType(key.kind),
        channels=key.channels,
        element_type=interface_pb2.ElementType.ValueType(key.element_type),
        causal=key.causal,
    )


def read_search(request: pb.SearchKernelsRequest) -> tuple[Scope, Wish]:
    """Raises InvalidRequest where there is no interface or the limit is out of bounds."""
    if not request.HasField("interface"):
        raise InvalidRequest("interface is not set; a search is for one interface", {"interface": "must be set"})
    if request.limit > MAX_SEARCH_LIMIT:
        raise InvalidRequest(f"limit is {request.limit}, at most {MAX_SEARCH_LIMIT}", {"limit": "too large"})
    scope = Scope(
        interface=read_interface(request.interface),
        target=request.target,
        status=request.status or pb.KERNEL_STATUS_VALIDATED,
    )
    wish = Wish(
        required_tags=frozenset(request.required_tags),
        preferred_tags=frozenset(request.preferred_tags),
        excluded_tags=frozenset(request.excluded_tags),
        max_parameters=request.max_parameters,
        max_forward_us=request.max_forward_us,
        max_peak_bytes=request.max_peak_bytes,
        max_risk=request.max_risk,
        min_interest=request.min_interest,
        interest_weight=request.interest_weight,
        limit=request.limit or DEFAULT_SEARCH_LIMIT,
    )
    return scope, wish


def request_key(request: Message) -> str:
    """Digest of a request: two requests with equal keys ask for the same thing."""
    named = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.sha256(named).hexdigest()


def graph_digest(graph: Graph) -> str:
    """sha256 of a graph as it was sent, names and order included; a blueprint's id leaves those out."""
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()


def stored_integer(name: str, value: int) -> int:
    """Raises InvalidRequest for a number no column holds."""
    if value > MAX_STORED_INTEGER:
        raise InvalidRequest(f"{name} is {value}, at most {MAX_STORED_INTEGER}", {name: "too large"})
    return value


def write_time(time_ns: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(time_ns)
    return stamp


def write_entry(entry: Entry) -> pb.LedgerEntry:
    return pb.LedgerEntry(
        revision=entry.revision,
        time=write_time(entry.time_ns),
        action=entry.action,
        resource_name=entry.resource_name,
        detail_json=entry.detail_json,
        digest=entry.digest,
    )


def new_blueprint(request: pb.CreateBlueprintRequest, blueprint_id: str, now_ns: int) -> pb.Blueprint:
    return pb.Blueprint(
        blueprint_id=blueprint_id,
        graph=request.graph,
        title=request.title,
        family=request.family,
        status=pb.BLUEPRINT_STATUS_UNVALIDATED,
        author=request.author,
        parent_ids=request.parent_ids,
        source=request.source,
        create_time=write_time(now_ns),
    )


def _waits_for(target: int) -> str:
    """What a new kernel needs that an evaluation on the CPU cannot give it; empty for the CPU's."""
    if target in (resource_pb2.TARGET_UNSPECIFIED, resource_pb2.TARGET_CPU):
        return ""
    name = resource_pb2.Target.Name(resource_pb2.Target.ValueType(target)).removeprefix("TARGET_").lower()
    return f"compiled for {name}, not evaluated: promotion needs an evaluation on such a device"


def new_kernel(artifact_id: str, body: KernelBody, blueprint: pb.Blueprint, now_ns: int) -> pb.Kernel:
    return pb.Kernel(
        artifact_id=artifact_id,
        blueprint_id=body.blueprint_id,
        interface=write_interface(body.interface),
        target=resource_pb2.Target.ValueType(body.target),
        pipeline=body.pipeline,
        status=pb.KERNEL_STATUS_PENDING_BENCHMARKING,
        status_reason=_waits_for(body.target),
        parameter_count=stored_integer("parameter_count", body.parameter_count),
        forward_flops_per_position=body.forward_flops_per_position,
        create_time=write_time(now_ns),
        size_bytes=stored_integer("size_bytes", body.size_bytes),
        title=blueprint.title,
        family=blueprint.family,
    )
