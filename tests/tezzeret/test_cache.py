"""What the library has of an order is not made again, by whichever forge: of this toolchain, target and interface."""

import pytest

from esper.api.common.v1 import resource_pb2
from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.api.urza.v1 import library_pb2
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface, Kind
from esper.errors import NotFound, Unavailable
from esper.tezzeret import cache, statuses
from esper.tezzeret import compile as compiling
from esper.tezzeret.forge import ForgeOptions
from esper.tezzeret.idle import IdleWork
from esper.tezzeret.kernels import triton_version
from tests.requirements import require

from .fakes import Library
from .test_forge import CONV3, MAP, ROOTS, Shop

DEVICES = ForgeOptions(targets=("cpu", "sm_80", "sm_90"))


@pytest.fixture
def triton():
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")


@pytest.fixture
def library() -> Library:
    """One library, which every forge of a test is opened over."""
    return Library(ROOTS)


def forge_over(library: Library, options: ForgeOptions | None = None) -> Shop:
    """A forge of another process, which remembers nothing."""
    shop = Shop(options)
    shop.library = shop.forge._library = library
    return shop


async def made(library: Library, *order: object, options: ForgeOptions | None = None, **more: object):
    """What a forge that was just started answers, and whether it compiled for that."""
    shop = forge_over(library, options)
    async with shop.forge:
        record = await shop.forge.compile(*order, **more)
    assert [heard.record for heard in shop.ears.heard] == [record]
    return record, bool(shop.pool.runs)


async def test_a_restarted_forge_answers_from_the_library_and_compiles_nothing(library):
    blueprint = library.add(CONV3)
    first, compiled = await made(library, blueprint, MAP)
    assert compiled and not first.cached
    again, compiled = await made(library, blueprint, MAP)
    assert not compiled
    assert (again.artifact_id, again.cached, again.target) == (first.artifact_id, True, resource_pb2.TARGET_CPU)
    assert library.status(blueprint) == "COMPILING"  # evaluation has yet to speak, and hears of it once more


async def test_a_choice_that_becomes_fast_is_answered_too(library):
    blueprint = library.add(CONV3)
    first, _ = await made(library, blueprint, MAP)
    again, compiled = await made(library, blueprint, MAP, pb.PIPELINE_AUTO)
    assert not compiled
    assert (again.artifact_id, again.pipeline_reason) == (first.artifact_id, "interest 0.00 is not over 0.7")


@pytest.mark.parametrize("other", [Interface(Kind.MAP2D, 9), Interface(Kind.TOKENS, 8)], ids=str)
async def test_another_interface_is_another_order(library, other):
    blueprint = library.add(CONV3)
    first, _ = await made(library, blueprint, MAP)
    again, compiled = await made(library, blueprint, write_interface(other))
    assert compiled and again.artifact_id != first.artifact_id


@pytest.mark.parametrize("status", ["REJECTED", "SUPERSEDED", "ARCHIVED", "QUARANTINED"])
async def test_a_kernel_out_of_use_answers_no_forge(library, status):
    blueprint = library.add(CONV3)
    first, _ = await made(library, blueprint, MAP)
    library.kernels[first.artifact_id].status = library_pb2.KernelStatus.Value(f"KERNEL_STATUS_{status}")
    again, compiled = await made(library, blueprint, MAP)
    assert compiled and not again.cached


async def test_a_promoted_kernel_answers(library):
    blueprint = library.add(CONV3)
    first, _ = await made(library, blueprint, MAP)
    library.kernels[first.artifact_id].status = library_pb2.KERNEL_STATUS_VALIDATED
    again, compiled = await made(library, blueprint, MAP)
    assert not compiled and again.artifact_id == first.artifact_id


async def test_another_toolchain_builds_anew_and_both_are_found_by_their_own(library, monkeypatch):
    blueprint = library.add(CONV3)
    old, _ = await made(library, blueprint, MAP)
    library.kernels[old.artifact_id].status = library_pb2.KERNEL_STATUS_VALIDATED
    monkeypatch.setattr(compiling, "RECIPE", "next")
    shop = forge_over(library)
    async with shop.forge:
        work = IdleWork(shop.forge, library)
        await work.look()
    assert (work.given, shop.pool.runs) == (1, ["compile"])  # an idle forge is not answered with the older one
    (new,) = library.kernels.keys() - {old.artifact_id}
    again, compiled = await made(library, blueprint, MAP)
    assert (again.artifact_id, compiled) == (new, False)
    monkeypatch.undo()
    again, compiled = await made(library, blueprint, MAP)
    assert (again.artifact_id, compiled) == (old.artifact_id, False)


async def test_a_key_is_of_its_target_and_pipeline(library, triton):
    blueprint = library.add(CONV3)
    sm_80, sm_90 = resource_pb2.TARGET_SM_80, resource_pb2.TARGET_SM_90
    found = set()
    for pipeline, target in ((pb.PIPELINE_FAST, 0), (pb.PIPELINE_STANDARD, sm_80), (pb.PIPELINE_STANDARD, sm_90)):
        record, compiled = await made(library, blueprint, MAP, pipeline, options=DEVICES, target=target)
        assert compiled
        found.add(record.artifact_id)
    assert len(found) == 3
    again, compiled = await made(library, blueprint, MAP, pb.PIPELINE_STANDARD, options=DEVICES, target=sm_80)
    assert not compiled and again.target == sm_80 and again.artifact_id in found


async def test_an_answer_for_a_device_lets_go_of_a_design_that_a_killed_forge_left_compiling(library, triton):
    blueprint, order = library.add(CONV3), (MAP, pb.PIPELINE_STANDARD)
    first, _ = await made(library, blueprint, *order, options=DEVICES)
    await statuses.mark(library, blueprint, statuses.COMPILING, "a forge that was killed when it had stored the kernel")
    again, compiled = await made(library, blueprint, *order, options=DEVICES)
    assert (again.artifact_id, compiled) == (first.artifact_id, False)
    assert library.status(blueprint) == "UNVALIDATED"
    await made(library, blueprint, MAP, options=DEVICES)
    await made(library, blueprint, *order, options=DEVICES)
    assert library.status(blueprint) == "COMPILING"  # for the kernel that is evaluated here


async def test_a_body_that_changed_answers_nothing(library, caplog):
    blueprint = library.add(CONV3)
    first, _ = await made(library, blueprint, MAP)
    library.artifacts[first.artifact_id][0].body += b" "
    with caplog.at_level("WARNING"):
        _, compiled = await made(library, blueprint, MAP)
    assert compiled
    assert [text for text in caplog.messages if f"kernels/{first.artifact_id} answers no order" in text]


async def test_a_kernel_that_goes_between_two_looks_answers_nothing(library, monkeypatch):
    blueprint = library.add(CONV3)
    await made(library, blueprint, MAP)

    async def gone(request):
        raise NotFound(f"kernels/{request.artifact_id}: no such kernel")

    monkeypatch.setattr(library, "get_kernel", gone)
    _, compiled = await made(library, blueprint, MAP)
    assert compiled


async def test_a_library_that_cannot_be_read_is_an_error_and_not_a_compilation(library, monkeypatch):
    blueprint = library.add(CONV3)
    await made(library, blueprint, MAP)

    async def away(request):
        raise Unavailable("the library is away")

    monkeypatch.setattr(library, "list_kernels", away)
    shop = forge_over(library)
    async with shop.forge:
        with pytest.raises(Unavailable, match="the library is away"):
            await shop.forge.submit(blueprint, MAP)
    assert not shop.pool.runs


async def test_every_page_of_a_blueprints_kernels_is_looked_at(library, monkeypatch):
    blueprint = library.add(CONV3)
    first, _ = await made(library, blueprint, MAP)
    for channels in (9, 10):
        await made(library, blueprint, write_interface(Interface(Kind.MAP2D, channels)))
    monkeypatch.setattr(cache, "_PAGE", 1)
    again, compiled = await made(library, blueprint, MAP)
    assert (again.artifact_id, compiled) == (first.artifact_id, False)
