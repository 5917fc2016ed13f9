"""What is offered, in which order, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.blueprint.interface import Interface, Kind
from esper.blueprint.matching import match
from esper.errors import InvalidRequest
from esper.karn.propose import MAX_LIMIT, propose, templates
from esper.karn.templates import TEMPLATES

MAP = Interface(Kind.MAP2D, 16)
INTERFACES = [
    MAP,
    Interface(Kind.VECTOR, 16),
    Interface(Kind.TOKENS, 16),
    Interface(Kind.TOKENS, 16, causal=True),
    Interface(Kind.MAP1D, 16, causal=True),
]


def titles(designs):
    return [design.template.title for design in designs]


def test_the_first_offers_are_the_measured_best():
    assert titles(propose(MAP))[0] == "conv3"
    assert titles(propose(Interface(Kind.TOKENS, 16, causal=True)))[0] == "causal_depthwise"
    assert titles(propose(Interface(Kind.VECTOR, 16)))[0] == "wide_mlp"


@pytest.mark.parametrize("interface", INTERFACES, ids=str)
def test_every_template_that_fits_is_offered_once(interface):
    fitting = {title for title, t in TEMPLATES.items() if match(t.graph, interface)[0]}
    offered = titles(propose(interface, limit=MAX_LIMIT))
    assert sorted(offered) == sorted(fitting) == titles(templates(interface))


@given(
    st.sampled_from(INTERFACES),
    st.integers(0, 5000),
    st.integers(1, MAX_LIMIT),
    st.sets(st.sampled_from(sorted(TEMPLATES))),
)
def test_budget_limit_and_exclusions_hold_and_keep_the_order(interface, max_parameters, limit, excluded):
    everything = propose(interface, limit=MAX_LIMIT)
    exclude = {d.blueprint_id for d in everything if d.template.title in excluded}
    wanted = [
        d
        for d in everything
        if d.blueprint_id not in exclude and (not max_parameters or d.inference.parameter_count <= max_parameters)
    ]
    offered = propose(interface, max_parameters, limit, exclude)
    assert titles(offered) == titles(wanted)[:limit]


def test_the_reason_names_rank_basis_and_size():
    best = propose(MAP, max_parameters=3000)[0]
    assert best.reason == (
        "prior rank 1 on map2d: largest mean gain on small convolutional networks; 2592 parameters of 3000 allowed"
    )


def test_nothing_affordable_is_an_empty_answer():
    assert propose(MAP, max_parameters=1) == []


@pytest.mark.parametrize("limit", [0, -1, MAX_LIMIT + 1])
def test_a_limit_out_of_bounds_is_refused(limit):
    with pytest.raises(InvalidRequest, match=f"limit is {limit}; it must be 1 to 64"):
        propose(MAP, limit=limit)


def test_the_library_without_an_interface_is_listed_by_title_and_without_sizes():
    listed = templates()
    assert titles(listed) == sorted(TEMPLATES)
    assert all(design.inference is None for design in listed)
