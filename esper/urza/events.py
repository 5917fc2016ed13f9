"""What the library tells the bus, as rows of its outbox.

An event is written in the transaction of the change it is about and published later, at
least once. Its id is made from the ledger digest of that change, so a broker that drops
repeated ids delivers it once. Watching the library shows every change; only those that
start somebody's work are events.
"""

from dataclasses import dataclass

from esper.api.tezzeret.v1 import forge_pb2
from esper.api.tezzeret.v1.forge_pb2 import KernelReady
from esper.api.urabrask.v1.evaluation_pb2 import KernelCharacterized
from esper.api.urza.v1 import library_pb2 as pb

_PIPELINES = {
    "fast": forge_pb2.PIPELINE_FAST,
    "standard": forge_pb2.PIPELINE_STANDARD,
    "aggressive": forge_pb2.PIPELINE_AGGRESSIVE,
}


@dataclass(frozen=True, slots=True)
class Event:
    """A message for the bus; its type alone decides the subject, see esper/oona/subjects.py."""

    payload_type: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """An event as stored: `sequence` is its order, `event_id` is the same at every delivery."""

    sequence: int
    event_id: str
    time_ns: int
    event: Event


def kernel_ready(kernel: pb.Kernel) -> Event:
    """The kernel is stored and wants evaluation."""
    message = KernelReady(
        artifact_id=kernel.artifact_id,
        blueprint_id=kernel.blueprint_id,
        interface=kernel.interface,
        pipeline=_PIPELINES.get(kernel.pipeline, forge_pb2.PIPELINE_UNSPECIFIED),
        target=kernel.target,
    )
    return Event(message.DESCRIPTOR.full_name, message.SerializeToString(deterministic=True))


def kernel_characterized(kernel: pb.Kernel) -> Event:
    """The kernel was evaluated: promoted or rejected."""
    message = KernelCharacterized(
        artifact_id=kernel.artifact_id,
        blueprint_id=kernel.blueprint_id,
        interface=kernel.interface,
        promoted=kernel.status == pb.KERNEL_STATUS_VALIDATED,
        report_name=kernel.report_name,
        tags=kernel.tags,
        forward_us_p50=kernel.forward_us_p50,
    )
    return Event(message.DESCRIPTOR.full_name, message.SerializeToString(deterministic=True))


def after_status(kernel: pb.Kernel) -> tuple[Event, ...]:
    """Events of a kernel's new status: one if it is the evaluation's word, none otherwise."""
    if kernel.status in (pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_REJECTED):
        return (kernel_characterized(kernel),)
    if kernel.status == pb.KERNEL_STATUS_PENDING_BENCHMARKING:
        return (kernel_ready(kernel),)
    return ()
