"""Lineage over a drawn graph, against its closure in plain Python."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import InvalidRequest, NotFound
from esper.urza.library import CentralLibrary

from .fakes import add_blueprint, add_kernel, graph, identify, interface, open_library, promotion

UP, DOWN = pb.LINEAGE_DIRECTION_ANCESTORS, pb.LINEAGE_DIRECTION_DESCENDANTS
ABSENT = "f" * 64
# Of each blueprint, the parents among those before it.
FAMILIES = st.lists(st.sets(st.integers(0, 7), max_size=3), min_size=1, max_size=8).map(
    lambda drawn: [{p for p in parents if p < child} for child, parents in enumerate(drawn)]
)


def id_of(number: int) -> str:
    return identify(graph(number))


async def grow(library: CentralLibrary, family: list[set[int]]) -> None:
    for child, parents in enumerate(family):
        await add_blueprint(library, child, parent_ids=[id_of(parent) for parent in sorted(parents)])


def reached(edges: list[set[int]], start: int, max_depth: int = 0) -> dict[int, int]:
    """Fewest steps to each blueprint that can be reached, the start at 0."""
    found, edge = {start: 0}, {start}
    while edge and (not max_depth or max(found.values()) < max_depth):
        depth = max(found.values()) + 1
        edge = {there for here in edge for there in edges[here]} - found.keys()
        found |= dict.fromkeys(edge, depth)
    return found


def turned(family: list[set[int]]) -> list[set[int]]:
    return [{child for child, parents in enumerate(family) if one in parents} for one in range(len(family))]


async def walk(library: CentralLibrary, size: int = 100, **fields: object) -> list[tuple[str, int]]:
    """All pages of a lineage."""
    found, token = [], ""
    while True:
        request = pb.GetLineageRequest(page=PageRequest(size=size, token=token), **fields)
        reply = await library.get_lineage(request)
        assert len(reply.entries) <= size
        found += [(entry.blueprint_id, entry.depth) for entry in reply.entries]
        token = reply.page.next_token
        if not token:
            return found


@settings(max_examples=25, deadline=None)
@given(family=FAMILIES, size=st.integers(1, 3), max_depth=st.integers(0, 3), data=st.data())
async def test_it_is_the_closure(family: list[set[int]], size: int, max_depth: int, data: st.DataObject) -> None:
    start, other = (data.draw(st.integers(0, len(family) - 1)) for _ in range(2))
    with TemporaryDirectory() as folder:
        library = await open_library(Path(folder))
        await grow(library, family)
        above, below = reached(family, start, max_depth), reached(turned(family), start, max_depth)
        ask = {"blueprint_id": id_of(start), "max_depth": max_depth, "size": size}
        up = [(id_of(one), above[one]) for one in sorted(above, reverse=True) if one != start]
        down = [(id_of(one), below[one]) for one in sorted(below) if one != start]
        assert await walk(library, direction=UP, **ask) == await walk(library, **ask) == up
        assert await walk(library, direction=DOWN, **ask) == down
        common = above.keys() & reached(family, other).keys()
        shared = [(id_of(one), above[one]) for one in sorted(common, reverse=True)]
        assert await walk(library, common_with_blueprint_id=id_of(other), **ask) == shared
        await library.close()


async def test_an_entry_says_what_a_blueprint_is(library: CentralLibrary) -> None:
    await grow(library, [set(), {0}])
    reply = await library.get_lineage(pb.GetLineageRequest(blueprint_id=id_of(0), direction=DOWN))
    (entry,) = reply.entries
    assert (entry.title, entry.family, entry.author) == ("blueprint 1", "convolution", "library")
    assert entry.parent_ids == [id_of(0)]
    assert entry.source == ""
    assert entry.status == pb.BLUEPRINT_STATUS_UNVALIDATED
    assert reply.header.revision == 2


async def test_an_entry_says_where_a_blueprint_comes_from(library: CentralLibrary) -> None:
    await add_blueprint(library, 0, source="a paper")
    await add_blueprint(library, 1, source="add gelu; remove add", parent_ids=[id_of(0)])
    reply = await library.get_lineage(pb.GetLineageRequest(blueprint_id=id_of(1), common_with_blueprint_id=id_of(1)))
    assert [entry.source for entry in reply.entries] == ["add gelu; remove add", "a paper"]


async def test_a_blueprint_derived_from_one_twice_has_one_edge(library: CentralLibrary) -> None:
    await add_blueprint(library, 0)
    await add_blueprint(library, 1, parent_ids=[id_of(0), id_of(0)])
    assert await walk(library, blueprint_id=id_of(1)) == [(id_of(0), 1)]


async def test_what_cannot_be_asked_is_named(library: CentralLibrary) -> None:
    await grow(library, [set(), {0}])
    for fields in ({"blueprint_id": ABSENT}, {"blueprint_id": id_of(0), "common_with_blueprint_id": ABSENT}):
        with pytest.raises(NotFound, match=ABSENT):
            await walk(library, **fields)
    with pytest.raises(InvalidRequest, match="only ancestors"):
        await walk(library, blueprint_id=id_of(0), direction=DOWN, common_with_blueprint_id=id_of(1))
    reply = await library.get_lineage(pb.GetLineageRequest(blueprint_id=id_of(0), direction=DOWN))
    token = (await library.list_blueprints(pb.ListBlueprintsRequest(page=PageRequest(size=1)))).page.next_token
    assert not reply.page.next_token
    with pytest.raises(InvalidRequest):
        await library.get_lineage(pb.GetLineageRequest(page=PageRequest(token=token), blueprint_id=id_of(0)))


async def test_a_search_keeps_to_a_lineage(library: CentralLibrary) -> None:
    await grow(library, [set(), {0}, set(), {1, 2}])
    kernels = {number: await add_kernel(library, number) for number in range(4)}
    for artifact_id in kernels.values():
        await library.set_kernel_status(promotion(artifact_id))

    async def found(**fields: str) -> set[int]:
        reply = await library.search_kernels(pb.SearchKernelsRequest(interface=interface(), **fields))
        return {number for number, one in kernels.items() if one in {m.kernel.artifact_id for m in reply.matches}}

    assert await found() == {0, 1, 2, 3}
    assert await found(descends_from_blueprint_id=id_of(1)) == {1, 3}
    assert await found(ancestor_of_blueprint_id=id_of(1)) == {0, 1}
    assert await found(descends_from_blueprint_id=id_of(0), ancestor_of_blueprint_id=id_of(1)) == {0, 1}
    with pytest.raises(NotFound):
        await found(descends_from_blueprint_id=ABSENT)
