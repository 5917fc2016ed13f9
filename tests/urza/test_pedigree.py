"""Families in memory: those of a drawn graph against its closure, however it came in, and however deep it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.urza import pedigree as subject
from esper.urza.library import CentralLibrary
from esper.urza.pedigree import Pedigree, members

from .fakes import add_blueprint, graph, identify


class Edges:
    """A store of edges, from which about two at a time are read."""

    def __init__(self, edges: list[tuple[int, int]]) -> None:
        self.edges = sorted(edges)

    async def new_edges(self, after: int, limit: int) -> list[tuple[int, int]]:
        later = [edge for edge in self.edges if edge[0] > after]
        last = later[1][0] if len(later) > 1 else 0
        return [edge for edge in later if edge[0] <= last] or later


FAMILIES = st.lists(st.sets(st.integers(1, 9), max_size=3), min_size=1, max_size=9).map(
    lambda drawn: [(child, parent) for child, parents in enumerate(drawn, 1) for parent in parents if parent < child]
)


def closure(edges: list[tuple[int, int]], start: int, *, down: bool) -> set[int]:
    found: set[int] = set()
    edge = {start}
    while edge:
        found |= edge
        edge = {(c if down else p) for c, p in edges if (p if down else c) in edge} - found
    return found


@given(edges=FAMILIES, start=st.integers(1, 9), known=st.integers(0, 9))
async def test_a_family_is_the_closure(edges: list[tuple[int, int]], start: int, known: int) -> None:
    pedigree = Pedigree()
    await pedigree.follow(Edges([edge for edge in edges if edge[0] <= known]))
    await pedigree.follow(Edges(edges))
    for found, down in ((pedigree.descendants(start, 10), True), (pedigree.ancestors(start, 10), False)):
        assert {int(one) for one in found.nonzero()[0]} == closure(edges, start, down=down)


@given(edges=FAMILIES, asked=st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.integers(1, 9)), max_size=12))
async def test_a_family_that_is_asked_for_again_is_the_closure_of_what_there_is_by_then(
    edges: list[tuple[int, int]], asked: list[tuple[int, bool, int]]
) -> None:
    """Each question at a later state than the one before, about a blueprint of that state; two families are kept."""
    pedigree, newest = Pedigree(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "_MAX_FAMILIES", 2)
        for start, down, later in asked:
            newest = max(newest, later, start)
            here = [edge for edge in edges if edge[0] <= newest]
            await pedigree.follow(Edges(here))
            found = (pedigree.descendants if down else pedigree.ancestors)(start, newest + 1)
            assert len(found) == newest + 1
            assert {int(one) for one in found.nonzero()[0]} == closure(here, start, down=down)
            assert len(pedigree._families) <= 2


async def test_a_family_that_is_asked_for_again_walks_new_edges_alone() -> None:
    pedigree = Pedigree()
    await pedigree.follow(Edges([(2, 1), (3, 2)]))
    before = pedigree.descendants(1, 4)
    pedigree._parents[0] = pedigree._parents[1] = 0  # what was walked is not looked at any more
    await pedigree.follow(Edges([(2, 1), (3, 2), (5, 3), (6, 4)]))
    assert pedigree.descendants(1, 7).nonzero()[0].tolist() == [1, 2, 3, 5]
    assert before.tolist() == [False, True, True, True]  # an answer that was given stays as it was


async def test_a_chain_of_many_generations_is_one_pass() -> None:
    count = 100_000
    pedigree = Pedigree()
    pedigree._children.extend(range(2, count + 1))
    pedigree._parents.extend(range(1, count))
    assert pedigree.descendants(1, count + 1).sum() == count
    assert pedigree.ancestors(count, count + 1).sum() == count
    assert members(7, 9).nonzero()[0].tolist() == [7]
    assert not members(0, 9).any()


async def test_the_store_never_gives_half_of_a_childs_parents(library: CentralLibrary, monkeypatch) -> None:
    monkeypatch.setattr(subject, "_BATCH", 2)
    ids = [identify(graph(number)) for number in range(5)]
    for number, parents in enumerate(([], [0], [0, 1], [0, 1, 2], [3])):
        await add_blueprint(library, number, parent_ids=[ids[parent] for parent in parents])
    pedigree = Pedigree()
    await library._store.read(pedigree.follow)
    assert list(zip(pedigree._children, pedigree._parents, strict=True)) == [
        (2, 1),
        (3, 1),
        (3, 2),
        (4, 1),
        (4, 2),
        (4, 3),
        (5, 4),
    ]
