"""What an evaluation's end changes in the library: statuses, and the word that lets a kernel be loaded."""

import logging

from esper.api.common.v1.artifact_pb2 import Attestation
from esper.api.urabrask.v1 import evaluation_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import PreconditionFailed
from esper.urabrask.port import Library

log = logging.getLogger(__name__)

_MAX_REASON = 2048
# Where a blueprint goes once a kernel of it is promoted, step by step; and once one is refused.
_TO_VALIDATED: dict[int, tuple[pb.BlueprintStatus.ValueType, ...]] = {
    pb.BLUEPRINT_STATUS_UNVALIDATED: (pb.BLUEPRINT_STATUS_VALIDATED,),
    pb.BLUEPRINT_STATUS_COMPILING: (pb.BLUEPRINT_STATUS_VALIDATED,),
    pb.BLUEPRINT_STATUS_INVALID: (pb.BLUEPRINT_STATUS_COMPILING, pb.BLUEPRINT_STATUS_VALIDATED),
}
_AFTER_REFUSAL: dict[int, tuple[pb.BlueprintStatus.ValueType, ...]] = {
    pb.BLUEPRINT_STATUS_COMPILING: (pb.BLUEPRINT_STATUS_UNVALIDATED,),
}


async def settle_kernel(
    library: Library, report: evaluation_pb2.Report, reason: str, attestation: Attestation | None
) -> pb.Kernel:
    """VALIDATED with `attestation`, or REJECTED without; figures and tags come from the report."""
    request = pb.SetKernelStatusRequest(
        artifact_id=report.artifact_id,
        status=pb.KERNEL_STATUS_REJECTED if attestation is None else pb.KERNEL_STATUS_VALIDATED,
        reason=reason[:_MAX_REASON],
        attestation=attestation,
        tags=report.tags,
        forward_us_p50=report.forward_us_p50,
        peak_bytes=report.peak_bytes,
        interest=report.interest,
        report_name=f"reports/{report.report_id}",
    )
    return (await library.set_kernel_status(request)).kernel


async def settle_blueprint(library: Library, kernel: pb.Kernel) -> None:
    """Move the kernel's blueprint where the kernel's status says; it may stand there already, or be archived."""
    promoted = kernel.status == pb.KERNEL_STATUS_VALIDATED
    reply = await library.get_blueprint(pb.GetBlueprintRequest(blueprint_id=kernel.blueprint_id))
    word = "promoted" if promoted else "rejected"
    for status in (_TO_VALIDATED if promoted else _AFTER_REFUSAL).get(reply.blueprint.status, ()):
        request = pb.SetBlueprintStatusRequest(
            blueprint_id=kernel.blueprint_id, status=status, reason=f"kernels/{kernel.artifact_id} was {word}"
        )
        try:
            await library.set_blueprint_status(request)
        except PreconditionFailed as error:  # somebody else moved it between the calls, and their word stands
            log.info("blueprints/%s was not moved: %s", kernel.blueprint_id, error)
            return


async def quarantine(library: Library, artifact_id: str, reason: str) -> None:
    """Take a kernel out of everybody's hands."""
    status = pb.KERNEL_STATUS_QUARANTINED
    await library.set_kernel_status(
        pb.SetKernelStatusRequest(artifact_id=artifact_id, status=status, reason=reason[:_MAX_REASON])
    )


def characterized(kernel: pb.Kernel) -> evaluation_pb2.KernelCharacterized:
    """What everybody is told of a kernel that has a report."""
    return evaluation_pb2.KernelCharacterized(
        artifact_id=kernel.artifact_id,
        blueprint_id=kernel.blueprint_id,
        interface=kernel.interface,
        promoted=kernel.status == pb.KERNEL_STATUS_VALIDATED,
        report_name=kernel.report_name,
        tags=kernel.tags,
        forward_us_p50=kernel.forward_us_p50,
    )
