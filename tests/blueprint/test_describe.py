"""The table of where a graph fits."""

import pytest

from esper.blueprint.describe import describe, interfaces
from esper.blueprint.infer import infer
from esper.blueprint.interface import Kind
from esper.blueprint.matching import match
from esper.errors import InvalidRequest
from esper.karn.templates import TEMPLATES


@pytest.mark.parametrize("title", TEMPLATES)
def test_every_interface_has_a_row_with_its_costs_or_the_reason(title):
    graph = TEMPLATES[title].graph
    rows = {interface: next(r for r in _rows(describe(graph, 32), interface)) for interface in interfaces(32)}
    assert {interface.kind for interface in rows} == set(Kind)
    for interface, row in rows.items():
        fits, reason = match(graph, interface)
        if fits:
            cost = infer(graph, interface, 256 if interface.kind.position_dims else 1)
            numbers = [cost.parameter_count, cost.forward_flops_per_position, 4 * cost.activation_elements_per_position]
            assert [int(word) for word in row.split()[-3:]] == numbers
        else:
            assert row.endswith(f"does not fit: {reason}")


def _rows(text, interface):
    return [line for line in text.splitlines() if line.startswith((f"  {interface}  ", f"  {interface}:"))]


def test_no_channels_are_refused():
    with pytest.raises(InvalidRequest, match="interface channels is 0"):
        describe(TEMPLATES["conv3"].graph, 0)
