"""When a low-rank pair is drawn into a region, and why not."""

import pytest
import torch

from esper.artifact.regions import read_regions, write_regions
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, ONE, Graph, Initialiser, Node, Parameter, constant
from esper.blueprint.plan import plan
from esper.tezzeret.cost_model import DEVICES
from esper.tezzeret.pairs import LEAST_SAVED, MOST_MAP_CHANNELS, MOST_RANK, MOST_ROW_CHANNELS
from esper.tezzeret.regions import find_regions
from esper.tezzeret.traffic import work_of
from tests.tezzeret.fusable import PAIR, SHARED, SQUARE, paired

NARROW = Interface(Kind.TOKENS, 8, torch.bfloat16)
_DRAWN = Initialiser.LECUN_UNIFORM


def graph(*nodes: Node, rank: int = 2, out=CHANNELS) -> Graph:
    """Nodes over the vector w and the matrices down and up."""
    size = constant(rank)
    shapes = {"w": (CHANNELS,), "down": (size, CHANNELS), "up": (out, size), "one": (ONE, CHANNELS)}
    used = {name for node in nodes for name in node.parameters}
    parameters = tuple(Parameter(name, shape, _DRAWN) for name, shape in shapes.items() if name in used)
    return Graph(nodes, parameters, nodes[-1].name)


def pair(name: str, source: str, rank: int = 2, out=CHANNELS) -> Node:
    return Node(name, "low_rank", (source,), ("down", "up"), (("out", out), ("rank", constant(rank))))


def operators(concrete, region) -> list[str]:
    return [concrete.form.steps[at - 1].node.operator for at in region.steps]


def reason_of(made: Graph, interface: Interface = NARROW) -> str:
    """Why the only pair of a graph is in no region; empty where it is in one."""
    concrete = plan(made, interface)
    regions, reasons = find_regions(concrete)
    assert read_regions(write_regions(regions), concrete) == regions
    (step,) = [at for at, step in enumerate(concrete.form.steps, start=1) if step.node.operator == "low_rank"]
    return reasons.get(step, "")


@pytest.mark.parametrize("kind", Kind)
def test_norm_pair_activation_gate_and_residual_are_one_region(kind):
    concrete = plan(PAIR, Interface(kind, 8))
    (region,), reasons = find_regions(concrete)
    assert reasons == {}
    assert sorted(operators(concrete, region)) == ["add", "channel_norm", "gelu", "low_rank", "mul", "sigmoid"]
    (one,) = region.pairs
    assert [concrete.shapes[place] for place in (one.down, one.up)] == [(3, 8), (8, 3)]
    assert set(region.parameters) - set(region.vectors) == {one.down, one.up}
    assert [wide for _, wide in region.kept] == [8, 8, 3, 3]


def test_both_matrices_may_be_one():
    (region,), reasons = find_regions(plan(SQUARE, NARROW))
    assert reasons == {}
    assert [one.down == one.up for one in region.pairs] == [True]


@pytest.mark.parametrize(
    ("made", "interface", "said"),
    [
        (paired(17, bias=False), NARROW, "rank 17; in a kernel, without tensor cores, at most 16 pays"),
        (paired(16, bias=False), NARROW, ""),
        (PAIR, Interface(Kind.TOKENS, 2048), ""),
        (PAIR, Interface(Kind.TOKENS, 2049), "2049 channels a position; a program with a low_rank holds at most 2048"),
        (PAIR, Interface(Kind.MAP2D, 128), ""),
        (PAIR, Interface(Kind.MAP1D, 129), "129 channels a position; a program with a low_rank holds at most 128"),
        (SQUARE, Interface(Kind.TOKENS, 17), "rank 17; in a kernel, without tensor cores, at most 16 pays"),
    ],
)
def test_bounds_are_said_with_their_numbers(made, interface, said):
    assert (MOST_RANK, MOST_ROW_CHANNELS, MOST_MAP_CHANNELS) == (16, 2048, 128)
    assert reason_of(made, interface) == said


def test_a_pair_that_makes_another_number_of_channels_is_torchs():
    made = graph(
        Node("scaled", "scale", (INPUT,), ("w",)),
        pair("level", "scaled", out=ONE),
        Node("out", "mul", ("scaled", "level")),
        out=ONE,
    )
    assert reason_of(made) == "it makes 1 channels of 8; a kernel has one number of channels"


def test_a_pair_alone_and_one_that_saves_little_are_torchs():
    assert reason_of(graph(pair("out", INPUT))).startswith("one kernel of it")
    # by torch 6 x (8 + 2) numbers; an activation reads and writes one in forward, reads two and writes one in backward
    # together: the input and result, and in backward three, two factors of 8 and two of 2 written and read
    apart, together = 2 * (6 * 10 + 5 * 8), 2 * (2 * 8 + 3 * 8 + 2 * (8 + 8 + 2 + 2))
    said = reason_of(graph(pair("pair", INPUT), Node("out", "gelu", ("pair",))))
    assert said == (
        f"one kernel of it and its neighbours moves {together} bytes a position, several move {apart}; "
        "it pays where one in 4 is saved"
    )
    assert LEAST_SAVED * (apart - together) < apart


def test_the_steps_around_a_pair_that_does_not_pay_are_drawn_without_it():
    """A value from elsewhere is added: torch's backward of that moves nothing a kernel could save."""
    made = graph(
        Node("level", "linear", (INPUT,), ("one",), (("out", ONE),)),
        Node("one", "add", (INPUT, "level")),
        Node("two", "silu", ("one",)),
        Node("elsewhere", "local_mean", ("two",), (), (("kernel", 3),)),
        pair("pair", "elsewhere"),
        Node("sum", "add", ("pair", "two")),
        Node("out", "tanh", ("sum",)),
    )
    concrete = plan(made, NARROW)
    regions, reasons = find_regions(concrete)
    assert sorted(sorted(operators(concrete, region)) for region in regions) == [["add", "silu"], ["add", "tanh"]]
    assert sum("is saved" in reason for reason in reasons.values()) == 1


def test_of_two_pairs_each_has_a_kernel():
    concrete = plan(SHARED, NARROW)
    regions, reasons = find_regions(concrete)
    assert reasons == {}
    assert [len(region.pairs) for region in regions] == [1, 1]
    (down,) = {pair.down for region in regions for pair in region.pairs}
    assert all(down in region.parameters for region in regions)


def test_each_of_several_blocks_keeps_its_own_norm_and_activation():
    nodes, last = [], INPUT
    for at in range(3):
        nodes += [
            Node(f"normed{at}", "channel_norm", (last,), ()),
            pair(f"pair{at}", f"normed{at}"),
            Node(f"bent{at}", "gelu", (f"pair{at}",)),
            Node(f"out{at}", "add", (f"bent{at}", last)),
        ]
        last = f"out{at}"
    concrete = plan(graph(*nodes), NARROW)
    regions, reasons = find_regions(concrete)
    assert reasons == {}
    assert [operators(concrete, one) for one in regions] == [["channel_norm", "low_rank", "gelu", "add"]] * 3


def test_arithmetic_without_tensor_cores_takes_no_device_longer_than_the_bytes_of_single_steps():
    """A norm, a pair and an activation by torch move 5, 6 and 5 numbers a channel."""
    for device in DEVICES.values():
        assert 14 * MOST_RANK / device.flops_per_ns <= (5 + 6 + 5) * 2 / device.bytes_per_ns


def test_bytes_of_a_region_with_a_pair_by_hand():
    concrete = plan(PAIR, NARROW)
    (region,), _ = find_regions(concrete)
    forward, backward = (work_of(region, one, concrete) for one in ("forward", "backward"))
    assert (forward.bytes_per_position, forward.bytes_per_program) == (2 * 2 * 8, 0)
    # input, gradient of the result, gradient of the input; factors of the matrices' gradients, written and read
    assert backward.bytes_per_position == 2 * (3 * 8 + 2 * (8 + 8 + 3 + 3))
    assert backward.bytes_per_program == 2 * 4 * 2 * 8  # sums of w and b, which is the pair's bias too
