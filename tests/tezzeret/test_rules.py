"""Rules of the generator beside torch where numbers are hard, and of every operator either a rule or the reason."""

from pathlib import Path

import pytest
import torch

from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, constant
from esper.blueprint.operators import OPERATORS
from esper.blueprint.plan import plan
from esper.tezzeret.kernels import MACHINE_CODE, machine_code_files, source_files, triton_version
from esper.tezzeret.regions import find_regions
from esper.tezzeret.rules import HELPERS, RULES
from esper.tezzeret.unfused import UNFUSED
from tests.requirements import require
from tests.tezzeret import elsewhere
from tests.tezzeret.fusable_bends import BENDS, ROW_RULES, SPREAD, alone
from tests.tezzeret.interpreted_extremes import ACTIVATIONS

ROOT = Path(__file__).resolve().parents[2]
TOKENS = Interface(Kind.TOKENS, 8)
WIDEST = (
    Interface(Kind.TOKENS, 4096, torch.bfloat16),
    Interface(Kind.TOKENS, 4095),
    Interface(Kind.MAP2D, 256, torch.float16),
    Interface(Kind.MAP2D, 96),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[str]]:
    """What tests/tezzeret/interpreted_extremes.py found."""
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")
    return elsewhere.interpreted("tests.tezzeret.interpreted_extremes", tmp_path_factory.mktemp("extremes"))


@pytest.mark.parametrize("operator", (*BENDS, *ROW_RULES, *ACTIVATIONS))
def test_nan_infinity_kinks_and_large_values_are_torchs(found, operator):
    assert found[operator] == []


def test_every_operator_has_a_rule_or_the_reason_why_not():
    assert RULES.keys() | UNFUSED.keys() == OPERATORS.keys()
    assert RULES.keys() & UNFUSED.keys() == set()


def test_helpers_are_those_that_rules_name():
    assert {name for rule in RULES.values() for name in rule.helpers} == HELPERS.keys()


def test_a_broadcast_is_drawn_in_whatever_it_takes_its_positions_from():
    concrete = plan(SPREAD, TOKENS)
    regions, reasons = find_regions(concrete)
    inside = [concrete.form.steps[at - 1].node.operator for region in regions for at in region.steps]
    assert inside.count("broadcast") == 3
    assert {concrete.form.steps[at - 1].node.operator for at in reasons} == {"pool_mean", "linear"}


def test_a_broadcast_beside_another_number_of_channels_is_torchs():
    wide = constant(5)
    graph = Graph(
        (
            Node("pooled", "pool_mean", (INPUT,)),
            Node("like", "linear", (INPUT,), ("m",), (("out", wide),)),
            Node("all", "broadcast", ("pooled", "like")),
            Node("bent", "relu", ("all",)),
            Node("out", "add", ("bent", INPUT)),
        ),
        (Parameter("m", (wide, CHANNELS), Initialiser.ZEROS),),
        "out",
    )
    concrete = plan(graph, TOKENS)
    regions, reasons = find_regions(concrete)
    (at,) = (at for at, step in enumerate(concrete.form.steps, 1) if step.node.operator == "broadcast")
    assert reasons[at] == "it makes 8 channels of all positions of a value of 5; a kernel has one number of channels"
    assert [len(region.steps) for region in regions] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("interface", WIDEST, ids=str)
@pytest.mark.parametrize("target", MACHINE_CODE)
def test_machine_code_spills_nothing_at_the_widest(target, interface):
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")
    for graph in (SPREAD, *(alone(operator) for operator in (*BENDS, *ROW_RULES))):
        concrete = plan(graph, interface)
        regions, _ = find_regions(concrete)
        assert regions
        machine_code_files(regions, concrete, source_files(regions, concrete), target)
