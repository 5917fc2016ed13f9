"""What the bus is told: one event for each change that starts somebody's work, and none for others."""

from esper.api.common.v1.resource_pb2 import TARGET_CPU
from esper.api.tezzeret.v1.forge_pb2 import PIPELINE_FAST, KernelReady
from esper.api.urabrask.v1.evaluation_pb2 import KernelCharacterized
from esper.api.urza.v1 import library_pb2 as pb
from esper.urza.events import OutboxEvent
from esper.urza.library import CentralLibrary

from .fakes import add_blueprint, add_kernel, graph, identify, interface, promotion


async def drained(library: CentralLibrary) -> list[OutboxEvent]:
    seen: list[OutboxEvent] = []

    async def publish(event: OutboxEvent) -> None:
        seen.append(event)

    await library.drain(publish)
    return seen


async def move(library: CentralLibrary, artifact_id: str, status: int) -> None:
    request = pb.SetKernelStatusRequest(artifact_id=artifact_id, status=status, reason="r")
    await library.set_kernel_status(request)


async def test_a_stored_kernel_wants_evaluation(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    (event,) = await drained(library)
    assert event.event.payload_type == "esper.api.tezzeret.v1.KernelReady"
    kernel = (await library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel
    wanted = KernelReady(
        artifact_id=artifact_id,
        blueprint_id=identify(graph()),
        interface=interface(),
        pipeline=PIPELINE_FAST,
        target=kernel.target,
    )
    assert (kernel.pipeline, kernel.target) == ("fast", TARGET_CPU)
    assert KernelReady.FromString(event.event.payload) == wanted


async def test_a_promotion_and_a_rejection_are_told(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    await library.set_kernel_status(promotion(artifact_id, tags=["fast"], forward_us_p50=7.0, report_name="reports/1"))
    await move(library, artifact_id, pb.KERNEL_STATUS_REJECTED)
    _, promoted, rejected = [KernelCharacterized.FromString(one.event.payload) for one in await drained(library)]
    assert (promoted.promoted, promoted.tags, promoted.forward_us_p50) == (True, ["fast"], 7.0)
    assert (promoted.artifact_id, promoted.interface, promoted.report_name) == (artifact_id, interface(), "reports/1")
    assert not rejected.promoted


async def test_a_kernel_sent_back_wants_evaluation_again(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    await move(library, artifact_id, pb.KERNEL_STATUS_ARCHIVED)
    await move(library, artifact_id, pb.KERNEL_STATUS_PENDING_BENCHMARKING)
    first, second = await drained(library)
    assert first.event == second.event
    assert first.event_id != second.event_id, "two events, though their words are the same"


async def test_other_changes_are_for_watchers_only(library: CentralLibrary) -> None:
    await add_blueprint(library)
    artifact_id = await add_kernel(library)
    await drained(library)
    await move(library, artifact_id, pb.KERNEL_STATUS_QUARANTINED)
    await library.set_alias(pb.SetAliasRequest(alias="a", target_name=f"kernels/{artifact_id}"))
    assert await drained(library) == []


async def test_a_repeated_request_is_told_once(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    for _ in range(2):
        await library.set_kernel_status(promotion(artifact_id, request_id="r"))
    assert len(await drained(library)) == 2
