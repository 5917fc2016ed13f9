"""Which steps are drawn together: disjoint sets that no path leaves and re-enters, as large as can be."""

import itertools

import pytest
import torch
from hypothesis import given

from esper.artifact.regions import PAIR, read_regions, value_type, write_regions
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.matching import match
from esper.blueprint.operators import OPERATORS
from esper.blueprint.plan import Plan, plan
from esper.errors import Corrupt
from esper.karn.templates import TEMPLATES
from esper.tezzeret.pairs import unpaid
from esper.tezzeret.regions import MOST_MAP_CHANNELS, MOST_ROW_CHANNELS, find_regions, why_not
from esper.tezzeret.rules import RULES
from esper.tezzeret.unfused import UNFUSED
from tests.blueprint.strategies import graphs, interfaces
from tests.tezzeret.fusable import AROUND, BROADCAST, CHAIN

TOKENS = Interface(Kind.TOKENS, 8)


def reached(concrete: Plan) -> dict[int, set[int]]:
    """Step -> all steps that use it, directly or not."""
    steps = concrete.form.steps
    found: dict[int, set[int]] = {}
    for at in range(len(steps), 0, -1):
        users = [b for b, step in enumerate(steps, start=1) if at in step.inputs]
        found[at] = set(users).union(*(found[b] for b in users))
    return found


def runs_as_one(sets: list[set[int]], concrete: Plan) -> bool:
    """Whether the graph with each set drawn together has no cycle, by walking it."""
    steps = concrete.form.steps
    home = {step: number for number, members in enumerate(sets) for step in members}
    home |= {at: -at for at in range(1, len(steps) + 1) if at not in home}
    edges = {(home[i], home[at]) for at, step in enumerate(steps, start=1) for i in step.inputs if i}
    edges = {(a, b) for a, b in edges if a != b}
    while edges:
        fewer = {(a, b) for a, b in edges if any(d == a for _, d in edges)}
        if fewer == edges:
            return False
        edges = fewer
    return True


@given(graphs(), interfaces(most_channels=9))
def test_regions_are_what_they_say(graph, interface):
    if not match(graph, interface)[0]:
        return
    concrete = plan(graph, interface)
    regions, reasons = find_regions(concrete)
    members = [set(region.steps) for region in regions]
    count = len(concrete.form.steps)
    assert sorted([*itertools.chain(*members), *reasons]) == list(range(1, count + 1))
    assert all(reasons.values())
    after = reached(concrete)
    for region, steps in zip(regions, members, strict=True):
        assert len(steps) > 1
        assert {value_type(step, concrete)[0] for step in steps} == {region.channels}
        for outside in set(range(1, count + 1)) - steps:
            from_inside = any(outside in after[step] for step in steps)
            assert not (from_inside and after[outside] & steps), "a path leaves and comes back"
        used = {step for step in steps if step == count or _used(step, concrete) - steps}
        assert set(region.outputs) == used
        assert {one.value for one in region.inputs} == {
            i for step in steps for i in concrete.form.steps[step - 1].inputs
        } - steps
        assert unpaid(region.steps, concrete) == (0, "")
        assert len(region.pairs) <= 1
        assert {pair.step for pair in region.pairs} == {step for step in steps if _operator(step, concrete) == PAIR}
    assert runs_as_one(members, concrete)
    assert read_regions(write_regions(regions), concrete) == regions


@given(graphs(), interfaces(most_channels=9))
def test_no_two_neighbours_could_be_drawn_together_too(graph, interface):
    if not match(graph, interface)[0]:
        return
    concrete = plan(graph, interface)
    regions, reasons = find_regions(concrete)
    members = [set(region.steps) for region in regions]
    members += [{at} for at, reason in reasons.items() if reason.startswith("no neighbour to fuse with")]
    for a, b in itertools.permutations(members, 2):
        touching = any(_used(step, concrete) & b for step in a)
        pairs = sum(_operator(step, concrete) == PAIR for step in a | b)
        if touching and pairs < 2 and value_type(min(a), concrete) == value_type(min(b), concrete):
            assert not runs_as_one([a | b, *(m for m in members if m is not a and m is not b)], concrete)


def _operator(step: int, concrete: Plan) -> str:
    return concrete.form.steps[step - 1].node.operator


def _used(step: int, concrete: Plan) -> set[int]:
    return {at for at, user in enumerate(concrete.form.steps, start=1) if step in user.inputs}


def test_a_chain_is_one_region_and_a_detour_splits_it():
    assert [len(region.steps) for region in find_regions(plan(CHAIN, TOKENS))[0]] == [11]
    concrete = plan(AROUND, TOKENS)
    regions, reasons = find_regions(concrete)
    operators = [[concrete.form.steps[s - 1].node.operator for s in region.steps] for region in regions]
    assert operators == [["scale", "relu"], ["add", "silu"]]
    assert list(reasons.values()) == ["no rule for linear: a product with a matrix is torch's"]


def test_what_is_broadcast_is_read_from_outside():
    concrete = plan(BROADCAST, TOKENS)
    pooled, full = sorted(find_regions(concrete)[0], key=lambda region: len(region.steps))
    assert [concrete.form.steps[s - 1].node.operator for s in pooled.steps] == ["sigmoid", "scale"]
    assert sorted((one.channels, one.per_sample) for one in full.inputs) == [
        (1, False), (1, True), (8, False), (8, True),
    ]  # fmt: skip
    assert full.by_sample
    assert not pooled.by_sample


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_a_rule_or_a_reason(operator):
    """A new operator is out of every region until it has a rule, and the forge says so."""
    seen = []
    for template in TEMPLATES.values():
        for interface in (TOKENS, Interface(Kind.MAP2D, 8)):
            if match(template.graph, interface)[0]:
                concrete = plan(template.graph, interface)
                steps = [at for at, s in enumerate(concrete.form.steps, 1) if s.node.operator == operator]
                seen += [why_not(at, concrete) for at in steps]
    assert set(seen) <= ({""} if operator in RULES else {f"no rule for {operator}: {UNFUSED[operator]}"})


def test_rules_are_for_operators_that_there_are():
    assert set(RULES) <= set(OPERATORS)


def test_what_a_kernel_cannot_do_is_said():
    for interface, reason in (
        (Interface(Kind.TOKENS, 8, torch.float64), "kernels compute in float32, which is less than torch.float64"),
        (Interface(Kind.TOKENS, 4097), f"4097 channels a position; a program holds at most {MOST_ROW_CHANNELS}"),
        (Interface(Kind.MAP2D, 257), f"257 channels a position; a program holds at most {MOST_MAP_CHANNELS}"),
    ):
        regions, reasons = find_regions(plan(CHAIN, interface))
        assert regions == ()
        assert set(reasons.values()) == {reason}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (b'"steps":[1,2', b'"steps":[2,1', "in order"),
        (b'"steps":[1,2', b'"steps":[99,2', "the graph has 1 to 11, in order"),
        (b'"outputs":[11]', b'"outputs":[10]', "not one of the graph"),
        (b'"layout":"rows"', b'"layout":"columns"', "must be one of rows, map"),
        (b'"channels":8,"inputs"', b'"channels":9,"inputs"', "not one of the graph"),
        (b'"tile_rows":128', b'"tile_rows":0', "tile_rows is 0"),
        (b'{"regions":', b'{"more":1,"regions":', "no field of this format"),
    ],
)
def test_a_list_of_regions_that_is_not_the_graphs_is_refused(before, after, said):
    concrete = plan(CHAIN, TOKENS)
    written = write_regions(find_regions(concrete)[0])
    assert before in written
    with pytest.raises(Corrupt, match=said):
        read_regions(written.replace(before, after), concrete)


def test_a_step_is_in_one_region():
    concrete = plan(CHAIN, TOKENS)
    (region,) = find_regions(concrete)[0]
    with pytest.raises(Corrupt, match="gives a step to two regions"):
        read_regions(write_regions((region, region)), concrete)
