"""All components in one process."""

from types import SimpleNamespace

from esper.api.tezzeret.v1 import forge_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.runtime.components import Components
from esper.runtime.home import Home
from tests.artifact.samples import ROOTS, built


def test_a_kernel_that_was_rejected_before_is_left_with_its_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr("esper.runtime.components.trust_of", lambda home, components: ROOTS)
    artifact = built()
    with Components(Home(tmp_path)) as components:
        library, run = components._library, components._runner.run
        run(library.create_kernel(pb.KernelManifest(artifact=artifact.manifest), dict(artifact.files)))
        rejected = pb.SetKernelStatusRequest(
            artifact_id=artifact.artifact_id, status=pb.KERNEL_STATUS_REJECTED, reason="it was wrong"
        )
        run(library.set_kernel_status(rejected))

        async def made(_order: forge_pb2.BlueprintSubmitted) -> list[forge_pb2.CompilationRecord]:
            return [forge_pb2.CompilationRecord(artifact_id=artifact.artifact_id), forge_pb2.CompilationRecord()]

        monkeypatch.setattr(components, "_forge", SimpleNamespace(compile_submitted=made))
        run(components._make([forge_pb2.BlueprintSubmitted()]))
        kernel = run(library.get_kernel(pb.GetKernelRequest(artifact_id=artifact.artifact_id))).kernel
    assert (kernel.status, kernel.status_reason) == (pb.KERNEL_STATUS_REJECTED, "it was wrong")
