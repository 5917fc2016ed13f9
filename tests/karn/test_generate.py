"""Whatever is generated is feasible, new, to the point, and the same for the same generator."""

import dataclasses
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.interface import Interface, Kind
from esper.errors import InvalidRequest
from esper.karn.feasible import Limits, feasible
from esper.karn.generate import MAX_DESIGNS, generate
from esper.karn.opportunity import Found, Opportunity, answers
from esper.karn.templates import TEMPLATES
from esper.tezzeret.check import check
from tests.karn.designs import INTERFACES, PARENTS


def found(interface, kind, max_parameters=0):
    return Found("site", interface, kind, "asked for", max_parameters)


@settings(max_examples=40)
@given(st.sampled_from(INTERFACES), st.sampled_from(list(Opportunity)), st.integers(0, 1 << 30))
def test_every_design_passes_the_forges_check_and_answers_its_opportunity(interface, kind, seed):
    if kind is Opportunity.ATTENTION and interface.kind is Kind.VECTOR:
        return
    made, reason = generate(found(interface, kind), Random(seed), PARENTS, 2)
    assert len(made) == 2, reason
    for design in made:
        assert check(design.graph, interface) == (True, ())
        assert answers(design.graph, interface, kind)[0]
        assert design.blueprint_id == blueprint_id(design.graph) not in PARENTS
        assert set(design.parents) <= set(PARENTS)
        assert design.moves
        assert kind.value in design.reason
    assert made[0].blueprint_id != made[1].blueprint_id


@pytest.mark.parametrize("interface", INTERFACES, ids=str)
def test_the_same_generator_gives_the_same_designs_and_another_others(interface):
    def ids(seed):
        return [d.blueprint_id for d in generate(found(interface, Opportunity.CAPACITY), Random(seed), PARENTS, 4)[0]]

    assert ids(3) == ids(3) != ids(4)


def test_the_order_in_which_parents_are_given_does_not_matter():
    turned = dict(reversed(PARENTS.items()))
    [a, b] = [
        generate(found(INTERFACES[0], Opportunity.CAPACITY), Random(1), parents, 3)[0] for parents in (PARENTS, turned)
    ]
    assert [d.blueprint_id for d in a] == [d.blueprint_id for d in b]


@pytest.mark.parametrize("most", [200, 1000])
def test_the_budget_is_kept(most):
    made, _ = generate(found(INTERFACES[0], Opportunity.CAPACITY, most), Random(0), PARENTS, 5)
    assert made and all(design.inference.parameter_count <= most for design in made)


def test_what_is_excluded_is_not_made_again():
    asked = found(INTERFACES[0], Opportunity.ACTIVATION)
    first = generate(asked, Random(0), PARENTS, 3)[0]
    again = generate(asked, Random(0), PARENTS, 3, exclude={d.blueprint_id for d in first})[0]
    assert not {d.blueprint_id for d in first} & {d.blueprint_id for d in again}


def test_what_cannot_be_answered_is_an_empty_answer_that_says_why():
    made, reason = generate(found(Interface(Kind.VECTOR, 8), Opportunity.ATTENTION), Random(0), PARENTS)
    assert made == []
    assert reason.startswith("0 of 1 designs in 200 tries; most often: ")
    assert "looks at other positions" in reason
    asked_for_many = generate(found(Interface(Kind.VECTOR, 8), Opportunity.ATTENTION), Random(0), PARENTS, MAX_DESIGNS)
    assert asked_for_many[1].startswith("0 of 64 designs in 200 tries; ")  # and not 64 times as many


@pytest.mark.parametrize("count", [0, MAX_DESIGNS + 1])
def test_a_count_out_of_bounds_is_refused(count):
    with pytest.raises(InvalidRequest, match=f"count is {count}; it must be 1 to 64"):
        generate(found(INTERFACES[0], Opportunity.CAPACITY), Random(0), PARENTS, count)


def test_without_parents_designs_are_drawn_from_nothing():
    made, _ = generate(found(INTERFACES[0], Opportunity.CAPACITY), Random(0), {}, 3)
    assert len(made) == 3
    assert all(design.parents == () and design.moves[0].startswith("drawn: ") for design in made)


def test_every_template_is_feasible_where_it_fits():
    for template in TEMPLATES.values():
        assert feasible(template.graph, INTERFACES[0], Limits()) == (
            True,
            "fits map2d[16] float32, zero at birth, every parameter learns",
        )


def test_what_is_not_zero_at_birth_or_cannot_learn_is_refused():
    graph = TEMPLATES["low_rank"].graph
    down, up = graph.parameters
    awake = dataclasses.replace(graph, parameters=(down, dataclasses.replace(up, initialiser=down.initialiser)))
    dead = dataclasses.replace(graph, parameters=(dataclasses.replace(down, initialiser=up.initialiser), up))
    assert "must be exactly 0" in feasible(awake, INTERFACES[0])[1]
    assert feasible(dead, INTERFACES[0]) == (False, "no parameter gets a gradient at birth")
    assert feasible(graph, INTERFACES[0], Limits(max_parameters=10)) == (False, "128 parameters, at most 10")
