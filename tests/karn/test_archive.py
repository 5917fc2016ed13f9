"""The archive: one best design for each sort, whatever the order they come in; kept in a library over a restart."""

import dataclasses
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.keys import TrustRoots
from esper.blueprint.codec import write_graph
from esper.blueprint.interface import Interface, Kind
from esper.karn.archive import Cell, Elite, candidate, cell_of, cells, insert
from esper.karn.generate import generate
from esper.karn.opportunity import Found, Opportunity
from esper.karn.shelf import keep, restore
from esper.karn.templates import TEMPLATES
from esper.urza.service import open_library
from tests.karn.designs import PARENTS

CELL, OTHER = Cell("map2d", "local", "plain", 2), Cell("map2d", "none", "plain", 2)


def elites():
    return st.builds(
        Elite,
        blueprint_id=st.text("0123456789abcdef", min_size=4, max_size=4),
        worth=st.sampled_from([-0.1, 0.0, 0.02]),
        observed=st.booleans(),
        flops=st.integers(1, 3),
    )


def rank(elite):
    return (elite.worth, elite.observed, -elite.flops)


@given(st.lists(st.tuples(st.sampled_from([CELL, OTHER]), elites()), unique_by=lambda pair: pair[1].blueprint_id))
def test_a_cell_has_the_best_that_came_whatever_the_order(pairs):
    archive = {}
    for cell, elite in pairs:
        before = archive.get(cell)
        archive, has_it, reason = insert(archive, cell, elite)
        assert (archive[cell] == elite) == has_it and reason
        assert before is None or rank(archive[cell]) >= rank(before)
    assert set(archive) == {cell for cell, _ in pairs}
    for cell in archive:
        assert rank(archive[cell]) == max(rank(elite) for at, elite in pairs if at == cell)


def test_at_equal_rank_what_is_there_stays_and_nothing_is_changed_in_place():
    first = Elite("a", 0.1, True, 5)
    archive, _, _ = insert({}, CELL, first)
    after, has_it, reason = insert(archive, CELL, dataclasses.replace(first, blueprint_id="b"))
    assert (after, has_it) == (archive, False) and "stays before" in reason
    better, _, _ = insert(archive, CELL, Elite("c", 0.2, False, 9))
    assert archive[CELL] == first and better[CELL].blueprint_id == "c"


def test_a_new_reading_replaces_the_old_but_an_expectation_no_observation():
    seen = Elite("a", 0.1, True, 5)
    archive, _, _ = insert({}, CELL, seen)
    worse, has_it, _ = insert(archive, CELL, dataclasses.replace(seen, worth=-0.2))
    assert has_it and worse[CELL].worth == -0.2
    kept, has_it, _ = insert(archive, CELL, dataclasses.replace(seen, worth=0.5, observed=False))
    assert has_it and kept[CELL] == seen


@pytest.mark.parametrize("kind", Kind)
def test_every_design_has_a_cell_of_those_there_are(kind):
    there = set(cells(kind))
    assert len({cell.alias for cell in there}) == len(there)
    made, _ = generate(Found("", Interface(kind, 64), Opportunity.CAPACITY, "e"), Random(0), PARENTS, 30)
    found = {cell_of(design.graph, kind) for design in made}
    assert found <= there
    assert len(found) >= 8


def test_cells_tell_designs_apart_by_reach_form_and_cost():
    def of(title):
        cell = cell_of(TEMPLATES[title].graph, Kind.MAP2D)
        return cell.reach, cell.form

    assert of("conv3") == ("local", "plain")
    assert of("squeeze_excitation") == ("global", "gated")
    assert of("normalisation") == ("none", "normed")
    assert of("conformer_conv") == ("local", "gated-normed")
    cheap, dear = (cell_of(TEMPLATES[t].graph, Kind.MAP2D).cost for t in ("channel_scale", "conv3"))
    assert cheap < dear


async def test_the_archive_is_in_the_library_and_survives_a_restart(tmp_path):
    url, blobs = f"sqlite+aiosqlite:///{tmp_path / 'library.db'}", (tmp_path / "blobs").as_uri()
    (tmp_path / "blobs").mkdir()
    gains = {}
    library = await open_library(url, blobs, TrustRoots())
    archive = {}
    try:
        for title in ("conv3", "bottleneck_conv", "low_rank", "wide_mlp", "convnext"):
            graph = TEMPLATES[title].graph
            request = pb.CreateBlueprintRequest(graph=write_graph(graph), title=title, author="library")
            await library.create_blueprint(request)
            gain = 0.01 * len(title)
            made, _ = candidate(graph, Kind.MAP2D)
            gains[made.blueprint_id] = gain
            archive, _, _ = await keep(library, archive, made.cell, made.elite(gain))
    finally:
        await library.close()
    library = await open_library(url, blobs, TrustRoots())
    try:
        found = await restore(library)
        assert {cell: made.elite(gains[made.blueprint_id]) for cell, made in found.items()} == archive
        assert all(candidate(made.graph, Kind.MAP2D)[0] == made for made in found.values())
    finally:
        await library.close()
    assert len(archive) >= 3
