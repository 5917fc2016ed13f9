"""First values: the rule, the reproducibility, what does not enter."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.blueprint.initialise import initialise
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, constant
from esper.blueprint.lower import lower
from esper.karn.templates import TEMPLATES

from .strategies import renamed, reordered


def drawn(graph, interface, seed=0):
    module = lower(graph, interface)
    initialise(module, torch.Generator().manual_seed(seed))
    return module


def conv(initialiser, groups="dense"):
    fan_in = CHANNELS if groups == "dense" else constant(1)
    node = Node("a", "conv", (INPUT,), ("w",), (("out", CHANNELS), ("kernel", 3), ("groups", groups)))
    return Graph((node,), (Parameter("w", (CHANNELS, fan_in, constant(3)), initialiser),), "a")


@pytest.mark.parametrize(
    ("graph", "kind", "bound"),
    [
        (conv(Initialiser.LECUN_UNIFORM), Kind.MAP2D, math.sqrt(3 / (64 * 9))),
        (conv(Initialiser.LECUN_UNIFORM), Kind.MAP1D, math.sqrt(3 / (64 * 3))),
        (conv(Initialiser.HE_UNIFORM), Kind.MAP2D, math.sqrt(6 / (64 * 9))),
        (conv(Initialiser.HE_UNIFORM, "depthwise"), Kind.MAP2D, math.sqrt(6 / 9)),
    ],
)
def test_drawn_values_fill_their_interval(graph, kind, bound):
    values = drawn(graph, Interface(kind, 64)).w.detach()
    assert values.abs().max() <= bound
    assert values.abs().max() > 0.98 * bound
    assert abs(float(values.mean())) < 0.1 * bound


@given(st.randoms(use_true_random=False), st.sampled_from(sorted(TEMPLATES)))
def test_names_and_list_order_do_not_change_the_draw(random, title):
    graph = TEMPLATES[title].graph
    interface = Interface(Kind.MAP2D, 8)
    same = drawn(reordered(renamed(graph, random), random), interface)
    for a, b in zip(same.ordered_parameters(), drawn(graph, interface).ordered_parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_dtype_rounds_the_same_draw():
    graph = TEMPLATES["conv3"].graph
    single = drawn(graph, Interface(Kind.MAP2D, 8)).near_weight
    half = drawn(graph, Interface(Kind.MAP2D, 8, torch.bfloat16)).near_weight
    assert torch.equal(single.to(torch.bfloat16), half)


def test_another_seed_is_another_draw_and_global_randomness_is_untouched():
    graph = TEMPLATES["conv3"].graph
    before = torch.get_rng_state(), random.getstate()
    one, two = (drawn(graph, Interface(Kind.MAP2D, 8), seed).near_weight for seed in (0, 1))
    assert not torch.equal(one, two)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_drawing_again_puts_zeros_back():
    module = drawn(TEMPLATES["conv3"].graph, Interface(Kind.MAP2D, 8))
    kept = module.near_weight
    with torch.no_grad():
        module.project_weight.fill_(3)
    initialise(module, torch.Generator().manual_seed(0))
    assert not module.project_weight.any()
    assert module.near_weight is kept
