"""`esper up --forge-targets cpu,sm_90` without such a device: kernels for it are made, kept and offered to nobody."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from esper.api.common.v1 import interface_pb2, operation_pb2, operation_pb2_grpc, resource_pb2
from esper.api.tezzeret.v1 import forge_pb2, forge_pb2_grpc
from esper.api.tolaria.v1 import state_pb2
from esper.api.urabrask.v1 import evaluation_pb2, evaluation_pb2_grpc
from esper.api.urza.v1 import library_pb2, library_pb2_grpc
from esper.artifact.attest import PROMOTED, attest
from esper.artifact.keys import load_or_create_key
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface, Kind
from esper.errors import PreconditionFailed
from esper.karn.templates import TEMPLATES
from esper.rpc.client import open_channel
from esper.runtime.clients import LibraryClient
from esper.runtime.inventory import Inventory
from esper.tezzeret.kernels import triton_version
from tests.requirements import require
from tests.runtime.processes import Runtime, esper

pytestmark = pytest.mark.slow

DESIGN = blueprint_id(TEMPLATES["swiglu_mlp"].graph)
WHERE, ELSEWHERE = (write_interface(Interface(Kind.TOKENS, channels)) for channels in (8, 16))
CPU, SM_90 = resource_pb2.TARGET_CPU, resource_pb2.TARGET_SM_90
PENDING, VALIDATED = library_pb2.KERNEL_STATUS_PENDING_BENCHMARKING, library_pb2.KERNEL_STATUS_VALIDATED
AUTO, FAST, STANDARD = forge_pb2.PIPELINE_AUTO, forge_pb2.PIPELINE_FAST, forge_pb2.PIPELINE_STANDARD


@pytest.fixture(scope="module")
def runtime(nats_server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")
    started = Runtime(tmp_path_factory.mktemp("devices"), "--forge-targets", "cpu,sm_90", "--workers", "1")
    yield started
    assert started.stop() == 0, started.text


@dataclass
class Line:
    channel: Any

    async def ordered(self, where: interface_pb2.Interface, pipeline: int) -> tuple[Any, library_pb2.Kernel]:
        """The forge's answer to an order, and the kernel it became."""
        order = forge_pb2.CreateCompilationRequest(blueprint_id=DESIGN, interface=where, pipeline=pipeline)
        answer = await self.forge.CreateCompilation(order)
        wait = operation_pb2.WaitOperationRequest(name=answer.operation.name)
        ended = (await operation_pb2_grpc.OperationServiceStub(self.channel).WaitOperation(wait, timeout=90)).operation
        assert ended.result_name, ended
        return answer, await self.kernel(ended.result_name.removeprefix("kernels/"))

    async def kernel(self, artifact_id: str) -> library_pb2.Kernel:
        return (await self.library.GetKernel(library_pb2.GetKernelRequest(artifact_id=artifact_id))).kernel

    async def evaluated(self, artifact_id: str) -> library_pb2.Kernel:
        """The kernel when an evaluation of it has ended."""
        request = evaluation_pb2.CreateEvaluationRequest(artifact_id=artifact_id)
        reply = await evaluation_pb2_grpc.EvaluationServiceStub(self.channel).CreateEvaluation(request)
        wait = operation_pb2.WaitOperationRequest(name=reply.operation.name)
        await operation_pb2_grpc.OperationServiceStub(self.channel).WaitOperation(wait, timeout=90)
        return await self.kernel(artifact_id)

    @property
    def forge(self) -> Any:
        return forge_pb2_grpc.ForgeServiceStub(self.channel)

    @property
    def library(self) -> Any:
        return library_pb2_grpc.LibraryServiceStub(self.channel)


@pytest.fixture
async def line(runtime) -> AsyncIterator[Line]:
    contact = runtime.contact
    async with open_channel(contact.address, token=contact.token()) as channel:
        yield Line(channel)


async def of_interest(runtime: Runtime, line: Line, kernel: library_pb2.Kernel) -> None:
    """Say with the evaluation's key that there is much to learn from a promoted kernel."""
    key = load_or_create_key(runtime.home.key("evaluation"))
    statement = attest(key, PROMOTED, kernel.artifact_id, {"said": "by a test"})
    request = library_pb2.SetKernelStatusRequest(
        artifact_id=kernel.artifact_id, status=VALIDATED, reason="much to learn", attestation=statement, interest=0.9
    )
    await line.library.SetKernelStatus(request)


async def test_kernels_for_a_device_are_compiled_and_say_that_nobody_evaluated_them(runtime, line):
    status = await line.forge.GetForgeStatus(forge_pb2.GetForgeStatusRequest())
    assert list(status.targets) == [CPU, SM_90]
    answer, kernel = await line.ordered(WHERE, STANDARD)
    assert (answer.pipeline, answer.target, answer.pipeline_reason) == (STANDARD, SM_90, "")
    assert (kernel.pipeline, kernel.target, kernel.status) == ("standard", SM_90, PENDING)
    why = "compiled for sm_90, not evaluated: promotion needs an evaluation on such a device"
    assert kernel.status_reason == why
    with pytest.raises(PreconditionFailed, match="is for sm_90, and this evaluator measures on the CPU"):
        await line.evaluated(kernel.artifact_id)
    _, files = await LibraryClient(lambda: line.channel).download_kernel(
        library_pb2.DownloadKernelRequest(artifact_id=kernel.artifact_id)
    )
    assert {"graph.pt2", "triton/region1_forward.cubin", "triton/region1_backward.cubin"} <= files.keys()
    after = await line.kernel(kernel.artifact_id)
    assert (after.status, after.status_reason, after.report_name) == (PENDING, why, "")


async def test_the_choice_is_fast_until_there_is_interest_and_then_for_the_device(runtime, line):
    answer, fast = await line.ordered(ELSEWHERE, AUTO)
    assert (answer.pipeline, answer.target) == (FAST, CPU)
    assert answer.pipeline_reason == "interest 0.00 is not over 0.7"
    fast = await line.evaluated(fast.artifact_id)
    assert (fast.pipeline, fast.target, fast.status) == ("fast", CPU, VALIDATED)
    await of_interest(runtime, line, fast)
    answer, kernel = await line.ordered(ELSEWHERE, AUTO)
    assert answer.pipeline in (STANDARD, forge_pb2.PIPELINE_AGGRESSIVE)
    assert answer.pipeline_reason.startswith("interest 0.90 is over 0.7 and load ")
    assert (kernel.target, kernel.status) == (SM_90, PENDING)
    records = (await line.forge.ListCompilations(forge_pb2.ListCompilationsRequest())).compilations
    (record,) = [one for one in records if one.operation_name == answer.operation.name]
    assert (record.pipeline, record.pipeline_reason) == (answer.pipeline, answer.pipeline_reason)
    assert record.artifact_id == kernel.artifact_id
    sites = [state_pb2.SiteState(layer_kind="Linear", interface=ELSEWHERE)]
    [(on_cpu, _)] = (await Inventory(LibraryClient(lambda: line.channel)).of_sites(sites, 0)).values()
    assert fast.artifact_id in {one.artifact_id for one in on_cpu}
    assert {(one.target, one.pipeline) for one in on_cpu} == {(CPU, "fast")}


def test_the_doctor_says_what_the_forge_makes_kernels_for(runtime):
    said = esper("doctor", "--home", str(runtime.home.root.absolute()), folder=runtime.folder)
    (line,) = [one for one in said.stdout.splitlines() if " forge " in one]
    assert "kernels for cpu, sm_90;" in line
