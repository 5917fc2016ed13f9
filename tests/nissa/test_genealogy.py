"""Who descends from whom, from what the library told of each."""

import pytest

from esper.api.urza.v1.library_pb2 import Blueprint
from esper.nissa.genealogy import family, in_words
from esper.nissa.pedigrees import KnownPedigrees

from .scenario import ancestors


def known(**parents):
    return {name: Blueprint(blueprint_id=name, title=name.upper(), parent_ids=ids) for name, ids in parents.items()}


def lines(name, pedigrees):
    return [(one.generation, one.blueprint_id, one.repeated) for one in family(name, pedigrees)]


def test_each_design_stands_before_its_parents():
    of = known(a=["b", "c"], b=["d"], c=[], d=[])
    assert lines("a", of) == [(0, "a", False), (1, "b", False), (2, "d", False), (1, "c", False)]


def test_parents_of_one_that_comes_again_are_not_told_again():
    of = known(a=["b", "c"], b=["c"], c=["d"], d=[])
    assert lines("a", of) == [
        (0, "a", False),
        (1, "b", False),
        (2, "c", False),
        (3, "d", False),
        (1, "c", True),
    ]


def test_of_one_that_is_not_known_there_is_the_id_alone():
    assert lines("a", known(a=["b"])) == [(0, "a", False), (1, "b", False)]
    assert family("a", known(a=["b"]))[1].title == ""


def test_a_line_of_a_thousand_generations_ends():
    of = known(**{f"n{i}": [f"n{i + 1}"] for i in range(3000)})
    assert len(family("n0", of)) == 3001


def test_even_a_circle_ends():
    assert lines("a", known(a=["b"], b=["a"])) == [(0, "a", False), (1, "b", False), (2, "a", True)]


@pytest.mark.parametrize(
    ("author", "source", "words"),
    [
        ("karn", "made for map[8] float32; add gelu; remove add", "made for map[8] float32: add gelu, then remove add"),
        ("karn", "add gelu; remove add", "add gelu, then remove add"),
        ("karn", "made for map[8] float32; ", "made for map[8] float32"),
        ("karn", "", ""),
        ("library", "One 2020; Two 2021", "One 2020; Two 2021"),
    ],
)
def test_moves_read_as_words_and_papers_as_they_are(author, source, words):
    assert in_words(author, source) == words


@pytest.mark.parametrize("again", [False, True])
def test_what_was_learned_is_kept_and_once(tmp_path, again):
    for _ in range(1 + again):
        learned = KnownPedigrees(tmp_path / "p.sqlite")
        learned.learn(ancestors())
        learned.close()
    read = KnownPedigrees(tmp_path / "p.sqlite")
    assert len(read) == 3
    assert read["c" * 64].parent_ids == ["d" * 64, "e" * 64]
    assert read["c" * 64].graph == ancestors()[0].graph
    assert not read["d" * 64].status  # that changes
    read.close()
