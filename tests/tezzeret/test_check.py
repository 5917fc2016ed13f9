"""The static check: every rule that is broken is told at once."""

from dataclasses import replace

import pytest

from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter
from esper.errors import InvalidBlueprint
from esper.karn.templates import TEMPLATES
from esper.tezzeret.check import CostLimits, check

MAP, TOKENS = Interface(Kind.MAP2D, 16), Interface(Kind.TOKENS, 16)
LOUD = Graph((Node("a", "scale", (INPUT,), ("w",)),), (Parameter("w", (CHANNELS,), Initialiser.ONES),), "a")


def test_a_template_that_fits_is_fine():
    assert check(TEMPLATES["conv3"].graph, MAP) == (True, ())


def test_one_that_does_not_fit_says_why():
    fine, reasons = check(TEMPLATES["conv3"].graph, Interface(Kind.VECTOR, 16))
    assert not fine
    assert reasons == ("node 'near': conv needs positions; vector[16] float32 has none",)


def test_a_graft_that_changes_the_host_at_birth_is_refused():
    fine, reasons = check(LOUD, MAP)
    assert not fine
    assert "'a' (scale) is not zero at birth" in reasons[0]


@pytest.mark.parametrize(
    ("limit", "word"),
    [
        ("max_parameters", "parameters at"),
        ("max_forward_flops_per_position", "forward operations per position"),
        ("max_activation_bytes_per_position", "activation bytes per position"),
    ],
)
def test_a_reading_at_its_limit_passes_and_one_above_is_named(limit, word):
    graph, tight = TEMPLATES["wide_mlp"].graph, CostLimits()
    cost = infer(graph, TOKENS, tight.positions)
    readings = {
        "max_parameters": cost.parameter_count,
        "max_forward_flops_per_position": cost.forward_flops_per_position,
        "max_activation_bytes_per_position": cost.activation_elements_per_position * 4,
    }
    assert check(graph, TOKENS, replace(tight, **{limit: readings[limit]}))[0]
    fine, reasons = check(graph, TOKENS, replace(tight, **{limit: readings[limit] - 1}))
    assert not fine
    assert [word in reason for reason in reasons] == [True]
    assert f"{readings[limit]} " in reasons[0]


def test_every_broken_rule_is_told():
    fine, reasons = check(LOUD, MAP, CostLimits(0, 0, 0))
    assert not fine
    assert len(reasons) == 4


def test_attention_is_counted_over_many_positions():
    graph, few = TEMPLATES["single_head_attention"].graph, CostLimits(positions=1)
    ceiling = infer(graph, TOKENS, 1).forward_flops_per_position
    assert check(graph, TOKENS, replace(few, max_forward_flops_per_position=ceiling))[0]
    assert not check(graph, TOKENS, replace(few, max_forward_flops_per_position=ceiling, positions=1024))[0]


def test_a_graph_that_is_not_well_formed_is_an_error():
    with pytest.raises(InvalidBlueprint, match="the graph has 0 nodes"):
        check(Graph((), (), "a"), MAP)
