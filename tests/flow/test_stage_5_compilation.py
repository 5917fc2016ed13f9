"""Stage 5, compilation: a kernel is bytes that were built, signed, evaluated and promoted, in that order."""

import pytest

from esper.api.common.v1.artifact_pb2 import Attestation
from esper.api.tezzeret.v1 import forge_pb2, forge_pb2_grpc
from esper.api.urabrask.v1 import evaluation_pb2, evaluation_pb2_grpc
from esper.api.urza.v1 import library_pb2, library_pb2_grpc
from esper.artifact.bundle import Artifact, verify
from esper.runtime.clients import LibraryClient
from esper.runtime.platform import trust_of


@pytest.fixture
async def kernel(channel, stage):
    artifact_id = stage.file("lineage.json")["fossils"][0]["artifact_id"]
    stub = library_pb2_grpc.LibraryServiceStub(channel)
    return (await stub.GetKernel(library_pb2.GetKernelRequest(artifact_id=artifact_id))).kernel


async def test_its_bytes_are_there_and_signed_by_forge_and_evaluator(channel, stage, kernel):
    client = LibraryClient(lambda: channel)
    manifest, files = await client.download_kernel(library_pb2.DownloadKernelRequest(artifact_id=kernel.artifact_id))
    assert len(files["module.pt"]) > 0
    roots = trust_of(stage.runtime.home, ("tezzeret", "urabrask"))
    verify(Artifact(manifest, files), roots)
    assert {a.role for a in manifest.attestations} == {Attestation.ROLE_BUILT, Attestation.ROLE_PROMOTED}


async def test_the_forge_says_how_long_it_took(channel, kernel):
    stub = forge_pb2_grpc.ForgeServiceStub(channel)
    records = (await stub.ListCompilations(forge_pb2.ListCompilationsRequest())).compilations
    ours = [record for record in records if record.artifact_id == kernel.artifact_id]
    assert ours and all(record.wall_ms > 0 for record in ours)


async def test_it_was_validated_by_checks_that_ran(channel, kernel):
    assert kernel.status == library_pb2.KERNEL_STATUS_VALIDATED
    stub = evaluation_pb2_grpc.EvaluationServiceStub(channel)
    report = (await stub.GetReport(evaluation_pb2.GetReportRequest(name=kernel.report_name))).report
    assert report.passed and report.artifact_id == kernel.artifact_id
    assert all(check.passed and check.detail for check in report.checks)
    named = " ".join(check.name for check in report.checks)
    assert all(word in named for word in ("shape", "dtype", "gradient", "determin", "finite", "identity")), named
    assert report.forward_us_p50 > 0 and report.peak_bytes > 0
