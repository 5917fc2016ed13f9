"""Inferred cost against what torch counts."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, constant
from esper.blueprint.lower import lower
from esper.blueprint.matching import match
from esper.errors import InvalidRequest
from esper.karn.templates import TEMPLATES

from .strategies import cases, interfaces, positions


def agrees_with_torch(graph, interface, batch, sizes):
    module = lower(graph, interface)
    found = infer(graph, interface)
    h = torch.zeros(interface.shape(batch, *sizes), dtype=interface.dtype)
    count = h.numel() // batch // interface.channels
    # the math path is the one whose products the counter sees on a CPU
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(h)
    assert batch * found.cost.products.at(count) == counter.get_total_flops()
    assert found.parameter_count == sum(p.numel() for p in module.parameters())
    assert found.parameter_shapes == {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert list(found.parameter_shapes) == list(module.parameter_names)
    assert found.activation_elements(batch, count) == results_elements(module, h)


def results_elements(module, h):
    """Elements of every call's result."""
    total = 0
    values = [h] * module._registers + module.ordered_parameters()
    for function, arguments, result in module._calls:
        values[result] = function(*[values[i] for i in arguments])
        total += values[result].numel()
    return total


@pytest.mark.parametrize("title", TEMPLATES)
@settings(max_examples=15)
@given(interface=interfaces(most_channels=40), data=st.data())
def test_templates_cost_what_torch_counts(title, interface, data):
    graph = TEMPLATES[title].graph
    assume(match(graph, interface)[0])
    agrees_with_torch(graph, interface, data.draw(st.integers(1, 3)), data.draw(positions(interface)))


@settings(max_examples=60)
@given(case=cases(), data=st.data())
def test_random_graphs_cost_what_torch_counts(case, data):
    graph, interface = case
    agrees_with_torch(graph, interface, data.draw(st.integers(1, 3)), data.draw(positions(interface)))


def one(node, *shapes):
    parameters = tuple(Parameter(f"p{i}", shape, Initialiser.ONES) for i, shape in enumerate(shapes))
    return Graph((node,), parameters, node.name)


@pytest.mark.parametrize(
    ("node", "shapes", "flops"),
    [
        (Node("a", "relu"), (), 8),
        (Node("a", "gelu"), (), 8),
        (Node("a", "add", (INPUT, INPUT)), (), 8),
        (Node("a", "scale", (INPUT,), ("p0",)), ((CHANNELS,),), 8),
        (Node("a", "channel_norm"), (), 5 * 8),
        (Node("a", "rms_norm", (INPUT,), ("p0",)), ((CHANNELS,),), 5 * 8),
        (Node("a", "softmax"), (), 5 * 8),
        (Node("a", "bias", (INPUT,), ("p0",)), ((CHANNELS,),), 8),
        (Node("a", "prelu", (INPUT,), ("p0",)), ((CHANNELS,),), 8),
        (Node("a", "leaky_relu"), (), 8),
        (Node("a", "channel_shuffle", attributes=(("groups", 2),)), (), 0),
        (
            Node("a", "low_rank", (INPUT,), ("p0", "p1", "p2"), (("out", CHANNELS), ("rank", constant(2)))),
            ((constant(2), CHANNELS), (CHANNELS, constant(2)), (CHANNELS,)),
            2 * 2 * (8 + 8) + 8,
        ),
        (
            Node("a", "mixture", (INPUT,), ("p0", "p1"), (("experts", 3), ("out", CHANNELS))),
            ((constant(3), CHANNELS), (CHANNELS.times(3), CHANNELS)),
            2 * 8 * 3 * (1 + 8) + 6 * 3 + 2 * 3 * 8,
        ),
        (Node("a", "channel_norm", (INPUT,), ("p0", "p1")), ((CHANNELS,), (CHANNELS,)), 7 * 8),
        (
            Node("a", "linear", (INPUT,), ("p0", "p1"), (("out", CHANNELS),)),
            ((CHANNELS, CHANNELS), (CHANNELS,)),
            2 * 64 + 8,
        ),
    ],
)
def test_what_an_elementwise_operator_counts(node, shapes, flops):
    found = infer(one(node, *shapes), Interface(Kind.VECTOR, 8))
    assert found.forward_flops_per_position == flops
    assert found.forward_flops(3, 1) == 3 * flops


@pytest.mark.parametrize(
    ("node", "flops"),
    [
        (Node("a", "local_mean", attributes=(("kernel", 3),)), 3 * 8),
        (Node("a", "local_max", attributes=(("kernel", 5),)), 5 * 8),
        (Node("a", "position_norm"), 5 * 8),
        (Node("a", "group_norm", attributes=(("groups", 2),)), 5 * 8),
        (Node("a", "rotary"), 3 * 8),
        (Node("a", "sinusoid"), 8),
        (Node("a", "shift", attributes=(("by", 1),)), 0),
        (Node("a", "flip"), 0),
        (Node("a", "attention", (INPUT,) * 3, (), (("bias", "alibi"), ("heads", 2))), 4 * (2 * 16 + 6 * 2)),
    ],
)
def test_what_an_operator_over_positions_counts(node, flops):
    assert infer(one(node), Interface(Kind.TOKENS, 8), positions=4).forward_flops_per_position == flops


def test_attention_grows_with_positions_and_pooling_is_shared_among_them():
    interface = Interface(Kind.TOKENS, 8)
    mix = Graph((Node("a", "attention", (INPUT,) * 3),), (), "a")
    assert infer(mix, interface, positions=10).forward_flops_per_position == 10 * (2 * 16 + 5)
    gate = TEMPLATES["squeeze_excitation"].graph
    near, far = infer(gate, interface), infer(gate, interface, positions=1000)
    assert far.forward_flops_per_position < near.forward_flops_per_position
    assert far.forward_flops(1, 1000) == near.forward_flops(1, 1000) <= 1000 * far.forward_flops_per_position


def test_no_positions_is_refused():
    with pytest.raises(InvalidRequest, match="positions is 0; it must be at least 1"):
        infer(TEMPLATES["conv3"].graph, Interface(Kind.MAP2D, 8), positions=0)


def test_inference_builds_no_tensor():
    class Nothing(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            raise AssertionError(f"{function} was called")

    with Nothing():
        for template in TEMPLATES.values():
            infer(template.graph, Interface(Kind.MAP2D, 1 << 10))
