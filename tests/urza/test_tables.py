"""What is kept in memory for searches is what the store says, whoever changed it and whatever was let go."""

import asyncio
from pathlib import Path

from esper.api.urza.v1 import library_pb2 as pb
from esper.urza.codec import InterfaceKey
from esper.urza.library import CentralLibrary
from esper.urza.tables import SearchTables

from .fakes import add_kernel, interface, open_library, promotion


async def found(library: CentralLibrary, channels: int = 8, **fields: object) -> list[str]:
    request = pb.SearchKernelsRequest(interface=interface(channels), **fields)
    return [match.kernel.artifact_id for match in (await library.search_kernels(request)).matches]


async def test_a_search_sees_every_change_before_it(library: CentralLibrary) -> None:
    assert await found(library) == []
    one, two = await add_kernel(library, 1), await add_kernel(library, 2, parameter_count=10)
    assert await found(library) == []
    for artifact_id in (one, two):
        await library.set_kernel_status(promotion(artifact_id))
    assert await found(library) == [two, one]
    await library.set_kernel_status(promotion(one, b"again", tags=["loved"]))
    assert await found(library, preferred_tags=["loved"]) == [one, two]
    gone = pb.SetKernelStatusRequest(artifact_id=two, status=pb.KERNEL_STATUS_ARCHIVED, reason="r")
    await library.set_kernel_status(gone)
    assert await found(library) == [one]
    assert await found(library, status=pb.KERNEL_STATUS_ARCHIVED) == [two]


async def test_a_reply_without_matches_says_which_figure_none_has(library: CentralLibrary) -> None:
    request = pb.SearchKernelsRequest(interface=interface(), max_risk=0.5)
    assert (await library.search_kernels(request)).empty_reason == ""
    artifact_id = await add_kernel(library)
    await library.set_kernel_status(promotion(artifact_id))
    reply = await library.search_kernels(request)
    assert not reply.matches and "(1) has a measured risk; search without max_risk" in reply.empty_reason
    await library.set_kernel_status(promotion(artifact_id, b"again", risk=0.2))
    reply = await library.search_kernels(request)
    assert len(reply.matches) == 1 and reply.empty_reason == ""


async def test_a_search_sees_what_another_process_wrote(library: CentralLibrary, tmp_path: Path) -> None:
    assert await found(library) == []
    other = await open_library(tmp_path)
    artifact_id = await add_kernel(other)
    await other.set_kernel_status(promotion(artifact_id))
    await other.close()
    assert await found(library) == [artifact_id]


async def test_searches_beside_writes_are_each_of_one_state(library: CentralLibrary) -> None:
    made = [await add_kernel(library, number) for number in range(6)]

    async def promote() -> None:
        for artifact_id in made:
            await library.set_kernel_status(promotion(artifact_id))

    async def look() -> None:
        for _ in range(10):
            reply = await library.search_kernels(pb.SearchKernelsRequest(interface=interface()))
            # Twelve revisions made them, and each after that promotes one.
            assert len(reply.matches) == reply.header.revision - 12
            assert all(match.kernel.status == pb.KERNEL_STATUS_VALIDATED for match in reply.matches)

    await asyncio.gather(promote(), look(), look())
    assert set(await found(library)) == set(made)


async def test_interfaces_searched_longest_ago_are_let_go_and_read_again(library: CentralLibrary) -> None:
    library._tables = tables = SearchTables(max_rows=2)
    made = {channels: await add_kernel(library, channels, site=interface(channels)) for channels in (8, 16, 32)}
    for artifact_id in made.values():
        await library.set_kernel_status(promotion(artifact_id))
    for channels in (8, 16, 8, 32, 16):
        assert await found(library, channels) == [made[channels]]
    assert list(tables._tables) == [InterfaceKey(interface().kind, channels, 1, False) for channels in (32, 16)]
