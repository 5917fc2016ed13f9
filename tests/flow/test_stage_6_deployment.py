"""Stage 6, deployment: a promoted kernel is loaded off the step path, runs, and is found in the cache again."""

import pytest
import torch

from esper.api.urza.v1 import library_pb2, library_pb2_grpc
from esper.blueprint.codec import write_interface
from esper.kasmina.lifecycle import State


@pytest.fixture
async def artifact_id(channel, loop):
    stub = library_pb2_grpc.LibraryServiceStub(channel)
    request = library_pb2.SearchKernelsRequest(
        interface=write_interface(loop.handle["conv1"].site.interface),
        status=library_pb2.KERNEL_STATUS_VALIDATED,
        limit=1,
    )
    return (await stub.SearchKernels(request)).matches[0].kernel.artifact_id


@pytest.fixture
async def loaded(loop, artifact_id):
    """conv1/0 with a kernel, still outside the host."""
    site = loop.handle["conv1"]
    assert await site.load_kernel(0, artifact_id)
    yield site
    site.unload_kernel(0)
    loop.session.run.executor.end_embargoes(10**9)


async def test_a_loaded_kernel_waits_outside_the_host(loop, loaded):
    x = loop.task.micro_batches(5)[0][0]
    assert loaded.state_layout.lifecycle_states[0] == State.TRAINING
    assert loop.handle.compare_with_original(x).identical


async def test_in_the_host_it_runs_and_keeps_the_shape(loop, loaded):
    x = loop.task.micro_batches(5)[0][0]
    shape = loop.parts.model(x).shape
    loaded.set_seed_alpha(0, 0.5)
    assert loop.parts.model(x).shape == shape
    (graft,) = loop.session.run.executor.grafts.values()
    with torch.no_grad():
        for parameter in graft.parameters():
            parameter.add_(0.1)
    assert not loop.handle.compare_with_original(x).identical
    assert loaded.get_layer_stats()["errors"] == 0


async def test_its_speed_is_known(channel, artifact_id):
    stub = library_pb2_grpc.LibraryServiceStub(channel)
    kernel = (await stub.GetKernel(library_pb2.GetKernelRequest(artifact_id=artifact_id))).kernel
    assert kernel.forward_us_p50 > 0


async def test_what_was_not_promoted_is_refused(loop):
    site = loop.handle["conv2"]
    assert not await site.load_kernel(1, "0" * 64)
    layout = site.state_layout
    assert layout.lifecycle_states[1] == State.CULLED
    assert loop.session.run.executor.table.of_site("conv2")[1].reason
    loop.session.run.executor.end_embargoes(10**9)
    assert layout.lifecycle_states[1] == State.DORMANT


def test_the_kernels_of_a_run_lie_verified_on_disk(stage):
    fossils = {fossil["artifact_id"] for fossil in stage.file("lineage.json")["fossils"]}
    kept = {path.name for path in stage.runtime.home.kernels.rglob("*") if path.is_dir()}
    assert fossils <= kept
