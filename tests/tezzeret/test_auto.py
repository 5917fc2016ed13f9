"""Orders that leave the pipeline to the forge: chosen when they are taken, kept under what they became, and said."""

import asyncio

import pytest

from esper.api.common.v1 import resource_pb2
from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.api.urza.v1 import library_pb2
from esper.artifact.body import read_body
from esper.errors import KernelFault, NotFound, Unavailable
from esper.karn.templates import TEMPLATES
from esper.tezzeret.forge import ForgeOptions
from esper.tezzeret.kernels import triton_version
from tests.requirements import require

from .fakes import until
from .test_forge import CONV3, MAP, Shop, opened

AUTO, SM_90 = pb.PIPELINE_AUTO, resource_pb2.TARGET_SM_90
BOTH = ForgeOptions(targets=("cpu", "sm_90"))


@pytest.fixture
def triton():
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")


async def of_interest(shop: Shop, interest: float) -> str:
    """A blueprint with a kernel of that interest."""
    blueprint = shop.library.add(CONV3)
    record = await shop.forge.compile(blueprint, MAP)
    shop.library.kernels[record.artifact_id].interest = interest
    return blueprint


async def test_a_design_of_little_interest_gets_fast_and_shares_its_key():
    async with opened() as shop:
        blueprint = await of_interest(shop, 0.5)
        record = await shop.forge.compile(blueprint, MAP, AUTO)
        assert (record.pipeline, record.target, record.cached) == (pb.PIPELINE_FAST, resource_pb2.TARGET_CPU, True)
        assert record.pipeline_reason == "interest 0.50 is not over 0.7"
        assert shop.ears.heard[-1].record == record
        assert shop.pool.runs == ["compile"]


async def test_a_design_of_high_interest_gets_kernels_for_the_device(triton):
    async with opened(BOTH) as shop:
        blueprint = await of_interest(shop, 0.9)
        record = await shop.forge.compile(blueprint, MAP, AUTO)
        name = pb.Pipeline.Name(record.pipeline).removeprefix("PIPELINE_").lower()
        assert name in ("standard", "aggressive")  # the most thorough there is
        assert record.target == SM_90
        assert record.pipeline_reason.startswith("interest 0.90 is over 0.7 and load 0% below 30%")
        body = read_body(shop.library.artifacts[record.artifact_id][0].body)
        assert (body.pipeline, body.target) == (name, "sm_90")
        named = await shop.forge.compile(blueprint, MAP, record.pipeline, target=SM_90)
        assert (named.artifact_id, named.cached, named.pipeline_reason) == (record.artifact_id, True, "")


async def test_a_design_that_is_for_a_device_alone_is_not_left_compiling(triton):
    async with opened(BOTH) as shop:
        blueprint = shop.library.add(CONV3)
        await shop.forge.compile(blueprint, MAP, pb.PIPELINE_STANDARD, target=SM_90)
        found = shop.library.blueprints[blueprint]
        assert found.status == library_pb2.BLUEPRINT_STATUS_UNVALIDATED
        assert found.status_reason == "compiled for sm_90, and not evaluated"


async def test_every_pipeline_has_its_own_time(triton):
    options = ForgeOptions(targets=("cpu", "sm_90"), timeouts_s={"fast": 1.0, "standard": 2.0, "aggressive": 3.0})
    async with opened(options) as shop:
        blueprint = shop.library.add(CONV3)
        for pipeline in (pb.PIPELINE_FAST, pb.PIPELINE_STANDARD, pb.PIPELINE_AGGRESSIVE):
            shop.pool.failures = [KernelFault("it was only asked for its time")]
            await shop.forge.compile(blueprint, MAP, pipeline)
        assert shop.pool.timeouts == [1.0, 2.0, 3.0]


async def test_a_busy_forge_gives_standard(triton):
    async with opened(BOTH) as shop:
        blueprint = await of_interest(shop, 0.9)
        shop.pool.gate = asyncio.Event()
        await shop.forge.submit(shop.library.add(TEMPLATES["low_rank"].graph), MAP)
        await until(lambda: shop.forge.busy == 1)
        ticket = await shop.forge.submit(blueprint, MAP, AUTO)
        assert ticket.order.pipeline == "standard"
        assert "load 100% not below 30%" in ticket.order.pipeline_reason
        assert await shop.forge.submit(blueprint, MAP, pb.PIPELINE_STANDARD) is ticket


async def test_what_failed_for_the_order_is_passed_over(triton):
    async with opened(BOTH) as shop:
        blueprint = await of_interest(shop, 0.9)
        shop.pool.failures = [KernelFault("its kernels spill registers")] * 2
        first = await shop.forge.compile(blueprint, MAP, pb.PIPELINE_STANDARD)
        assert first.HasField("failure") and first.target == SM_90
        shop.pool.failures = [KernelFault("its kernels spill registers")]
        dearer = await shop.forge.compile(blueprint, MAP, AUTO)
        if dearer.pipeline != pb.PIPELINE_FAST:  # where there is a dearer one, that fails next
            shop.pool.failures = []
            dearer = await shop.forge.compile(blueprint, MAP, AUTO)
        assert dearer.pipeline == pb.PIPELINE_FAST
        assert "not standard: it failed for the same order: its kernels spill registers" in dearer.pipeline_reason
        assert dearer.artifact_id


async def test_a_forge_without_the_device_gives_fast_and_names_the_setting(triton):
    async with opened() as shop:
        blueprint = await of_interest(shop, 0.9)
        record = await shop.forge.compile(blueprint, MAP, AUTO, target=SM_90)
        assert record.pipeline == pb.PIPELINE_FAST
        assert "not standard: this forge makes kernels for cpu, not for sm_90" in record.pipeline_reason
        with pytest.raises(Unavailable, match="--forge-targets cpu,sm_90"):
            await shop.forge.submit(blueprint, MAP, pb.PIPELINE_STANDARD, target=SM_90)


async def test_a_submission_may_leave_the_choice_and_says_so_where_it_is_refused():
    async with opened() as shop:
        blueprint = shop.library.add(CONV3)
        (record,) = await shop.forge.compile_submitted(
            pb.BlueprintSubmitted(blueprint_id=blueprint, interfaces=[MAP], pipeline=AUTO, target=SM_90)
        )
        assert record.pipeline == pb.PIPELINE_FAST and record.artifact_id
        with pytest.raises(NotFound):
            await shop.forge.submit("f" * 64, MAP, AUTO)
        (refused,) = await shop.forge.compile_submitted(
            pb.BlueprintSubmitted(blueprint_id="f" * 64, interfaces=[MAP], pipeline=AUTO)
        )
        assert (refused.pipeline, refused.target) == (AUTO, resource_pb2.TARGET_UNSPECIFIED)
        assert "no such blueprint" in refused.failure.message


async def test_taken_out_of_use_is_of_no_interest():
    async with opened() as shop:
        blueprint = await of_interest(shop, 0.9)
        for kernel in shop.library.kernels.values():
            kernel.status = library_pb2.KERNEL_STATUS_ARCHIVED
        record = await shop.forge.compile(blueprint, MAP, AUTO)
        assert record.pipeline_reason == "interest 0.00 is not over 0.7"
