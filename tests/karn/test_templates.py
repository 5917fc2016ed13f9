"""The library: zero at birth, alive to gradient, and described."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.infer import infer
from esper.blueprint.initialise import initialise
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import Initialiser
from esper.blueprint.lower import lower
from esper.blueprint.matching import match
from esper.karn.templates import TEMPLATES


def interfaces():
    def build(kind, channels, causal):
        return Interface(kind, channels, torch.float64, causal and kind in (Kind.TOKENS, Kind.MAP1D))

    return st.builds(build, st.sampled_from(list(Kind)), st.integers(2, 24), st.booleans())


def born(title, interface, seed):
    """A template as a graft is born, and an input for it."""
    module = lower(TEMPLATES[title].graph, interface)
    generator = torch.Generator().manual_seed(seed)
    initialise(module, generator)
    # 8 elements and at least 4 positions: some hidden unit is active for some of them
    h = interface.example(8, *[4] * interface.kind.position_dims, generator=generator)
    return module, h


def gradients(module, h):
    """Of a loss with another slope at every element."""
    target = torch.sin(torch.arange(h.numel(), dtype=h.dtype)).reshape(h.shape)
    loss = ((h + module(h) - target) ** 2).sum()
    return dict(zip(module.parameter_names, torch.autograd.grad(loss, module.ordered_parameters()), strict=True))


@pytest.mark.parametrize("title", TEMPLATES)
@settings(max_examples=25)
@given(interface=interfaces(), seed=st.integers(0, 1 << 30))
def test_a_graft_is_zero_at_birth_and_alive_to_gradient(title, interface, seed):
    assume(match(TEMPLATES[title].graph, interface)[0])
    module, h = born(title, interface, seed)
    assert torch.count_nonzero(module(h)) == 0

    first = gradients(module, h)
    for name in zero_parameters_of_the_last_operator(title):
        assert first[name].any(), f"{name} has no gradient at birth"

    with torch.no_grad():
        for parameter, gradient in zip(module.ordered_parameters(), first.values(), strict=True):
            parameter -= 1e-3 * gradient / (1 + gradient.abs().max())
    assert torch.count_nonzero(module(h)) > 0
    for name, gradient in gradients(module, h).items():
        assert gradient.any(), f"{name} has no gradient after one step"


def zero_parameters_of_the_last_operator(title):
    graph = TEMPLATES[title].graph
    last = [node for node in graph.nodes if node.parameters][-1]
    zeros = {p.name for p in graph.parameters if p.initialiser is Initialiser.ZEROS}
    assert set(last.parameters) <= zeros
    return last.parameters


@pytest.mark.parametrize("title", TEMPLATES)
def test_every_template_says_where_it_comes_from(title):
    template = TEMPLATES[title]
    assert template.title == title
    assert template.family
    assert "arXiv:" in template.source


def test_the_library_has_at_least_24_designs():
    assert len(TEMPLATES) >= 24


def test_no_two_templates_are_one_design():
    assert len({blueprint_id(template.graph) for template in TEMPLATES.values()}) == len(TEMPLATES)


SIZES = {  # parameters at 16 channels on a map with two position dimensions
    "low_rank": 2 * 4 * 16,
    "bottleneck_mlp": 2 * 8 * 16 + 8 + 16,
    "wide_mlp": 2 * 64 * 16 + 64 + 16,
    "depthwise_separable": 9 * 16 + 16 + 16 * 16 + 16,
    "causal_depthwise": 25 * 16 + 16 + 16 * 16 + 16,
    "conv3": 9 * 16 * 16 + 16 + 16 * 16 + 16,
    "squeeze_excitation": 2 * 4 * 16 + 4 + 16,
    "normalisation": 2 * 16,
    "single_head_attention": 2 * 16 + 4 * 4 * 16,
    "glu_mlp": 3 * 32 * 16,
    "swiglu_mlp": 3 * 32 * 16,
    "geglu_mlp": 3 * 32 * 16,
    "highway": 2 * (16 * 16 + 16),
    "squared_relu_mlp": 2 * 32 * 16 + 32 + 16,
    "swish_mlp": 2 * 32 * 16 + 32 + 16,
    "prenorm_mlp": 2 * 16 + 2 * 64 * 16 + 64 + 16,
    "layer_scale_mlp": 2 * 16 + 2 * 8 * 16 + 8 + 16 + 16,
    "thin_adapter": 2 * 4 * 16 + 4 + 16,
    "channel_scale": 16,
    "inverted_bottleneck": 32 * 16 + 32 + 9 * 32 + 32 + 16 * 32 + 16,
    "convnext": 49 * 16 + 16 + 2 * 16 + 2 * 32 * 16 + 32 + 16,
    "conv_mixer": 81 * 16 + 16 + 2 * 16 + 16 * 16 + 16,
    "conformer_conv": 2 * 16 + 2 * (16 * 16 + 16) + 25 * 16 + 16 + 16 * 16 + 16,
    "two_scales": (9 + 49) * 16 + 2 * 16 + 16 * 16 + 16,
    "bottleneck_conv": 4 * 16 + 4 + 9 * 4 * 4 + 4 + 16 * 4 + 16,
    "preactivation_conv": 2 * 16 + 9 * 16 * 16 + 16 + 16 * 16 + 16,
    "gated_conv": 2 * (9 * 16 + 16) + 16 * 16 + 16,
    "large_kernel_attention": (25 + 49) * 16 + 2 * 16 + 2 * (16 * 16 + 16),
    "spatial_gate": 49 * 16 * 4 + 4 + 4 + 1,
    "four_head_attention": 2 * 16 + 4 * 32 * 16,
    "gated_attention": 2 * 16 + 5 * 32 * 16,
}


@pytest.mark.parametrize("title", TEMPLATES)
def test_a_template_has_the_size_its_formula_says(title):
    assert infer(TEMPLATES[title].graph, Interface(Kind.MAP2D, 16)).parameter_count == SIZES[title]
