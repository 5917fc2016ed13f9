"""The reference lowering: shapes, gradients, causality, dtypes, and what torch does to a module."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from esper.blueprint.initialise import initialise
from esper.blueprint.interface import DTYPES, Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter
from esper.blueprint.lower import lower
from esper.blueprint.matching import match
from esper.karn.templates import TEMPLATES

from .strategies import cases, interfaces, positions

PLACES = {
    Kind.VECTOR: (),
    Kind.TOKENS: (5,),
    Kind.MAP1D: (5,),
    Kind.MAP2D: (5, 3),
}
FITTING = [
    (title, interface)
    for interface in (
        Interface(Kind.VECTOR, 8),
        Interface(Kind.TOKENS, 8),
        Interface(Kind.TOKENS, 8, causal=True),
        Interface(Kind.MAP1D, 8, causal=True),
        Interface(Kind.MAP2D, 8),
    )
    for title, template in TEMPLATES.items()
    if match(template.graph, interface)[0]
]


def alive(graph, interface, seed=0):
    """Lowered, drawn, and with every parameter off zero, so that nothing hides behind a zero."""
    module = lower(graph, interface)
    generator = torch.Generator().manual_seed(seed)
    initialise(module, generator)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.3)
    return module


def example(interface, batch=2, seed=1):
    return interface.example(batch, *PLACES[interface.kind], generator=torch.Generator().manual_seed(seed))


@settings(max_examples=100)
@given(case=cases(), batch=st.integers(1, 3), data=st.data())
def test_the_output_has_the_inputs_shape_and_dtype(case, batch, data):
    graph, interface = case
    h = interface.example(batch, *data.draw(positions(interface)))
    out = alive(graph, interface)(h)
    assert out.shape == h.shape
    assert out.dtype == h.dtype


@pytest.mark.parametrize("title", TEMPLATES)
@settings(max_examples=20)
@given(interface=interfaces(), batch=st.integers(1, 3), data=st.data())
def test_every_template_keeps_shape(title, interface, batch, data):
    graph = TEMPLATES[title].graph
    assume(match(graph, interface)[0])
    h = interface.example(batch, *data.draw(positions(interface)))
    assert alive(graph, interface)(h).shape == h.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("title", "interface"), FITTING, ids=str)
def test_every_dtype_runs_forward_and_backward(title, interface, dtype):
    interface = Interface(interface.kind, interface.channels, dtype, interface.causal)
    module = alive(TEMPLATES[title].graph, interface)
    h = example(interface).requires_grad_()
    out = module(h)
    out.sum().backward()
    assert out.dtype is h.grad.dtype is dtype
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_an_empty_batch_and_one_position_pass():
    for title, interface in FITTING:
        ones = [1] * interface.kind.position_dims
        assert alive(TEMPLATES[title].graph, interface)(interface.example(1, *ones)).shape == interface.shape(1, *ones)
        if title != "single_head_attention":  # torch's attention has no empty batch on a CPU
            assert alive(TEMPLATES[title].graph, interface)(interface.example(0, *ones)).shape[0] == 0


@settings(max_examples=60)
@given(
    kind=st.sampled_from([Kind.TOKENS, Kind.MAP1D]),
    length=st.integers(2, 9),
    data=st.data(),
)
def test_a_causal_lowering_leaks_nothing(kind, length, data):
    graph, interface = data.draw(cases(st.just(Interface(kind, 8, torch.float64, causal=True))))
    at = data.draw(st.integers(1, length - 1))
    before, after = around(alive(graph, interface), interface, length, at)
    assert torch.equal(before.narrow(place(kind), 0, at), after.narrow(place(kind), 0, at))


@pytest.mark.parametrize("kind", [Kind.TOKENS, Kind.MAP1D])
@pytest.mark.parametrize("title", sorted(set(TEMPLATES) - {"squeeze_excitation"}))
def test_a_causal_template_leaks_nothing(title, kind):
    interface = Interface(kind, 8, torch.float64, causal=True)
    module = alive(TEMPLATES[title].graph, interface)
    for at in (1, 4, 8):
        leaks_nothing(module, interface, 9, at)


def leaks_nothing(module, interface, length, at):
    """Changing position `at` changes no output before it, and does change the output at it."""
    before, after = around(module, interface, length, at)
    assert torch.equal(before.narrow(place(interface.kind), 0, at), after.narrow(place(interface.kind), 0, at))
    assert not torch.equal(before, after)


def around(module, interface, length, at):
    """Outputs before and after position `at` of the input is changed."""
    h = interface.example(2, length, generator=torch.Generator().manual_seed(3))
    changed = h.clone()
    changed.select(place(interface.kind), at).add_(torch.linspace(1, 2, interface.channels, dtype=h.dtype))
    return module(h), module(changed)


def place(kind):
    """Where positions are."""
    return 1 if kind is Kind.TOKENS else 2


def test_a_lowering_that_is_not_causal_sees_later_positions():
    module = alive(TEMPLATES["conv3"].graph, Interface(Kind.TOKENS, 8))
    h = example(module.interface)
    changed = h.clone()
    changed[:, 3] += 1
    assert not torch.equal(module(h)[:, 2], module(changed)[:, 2])


def test_a_convolution_equals_torchs_module():
    interface = Interface(Kind.MAP2D, 4)
    module = alive(TEMPLATES["conv3"].graph, interface)
    near = nn.Conv2d(4, 4, 3, padding=1)
    project = nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        near.weight.copy_(module.near_weight)
        near.bias.copy_(module.near_bias)
        project.weight.copy_(module.project_weight[:, :, None, None])
        project.bias.copy_(module.project_bias)
    h = example(interface)
    torch.testing.assert_close(module(h), project(near(h).relu()))


def test_attention_equals_torchs_module():
    interface = Interface(Kind.TOKENS, 8, torch.float64, causal=True)
    heads = Graph((Node("mix", "attention", (INPUT,) * 3, (), (("heads", 4),)),), (), "mix")
    reference = nn.MultiheadAttention(8, 4, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.eye(8).repeat(3, 1))
        reference.out_proj.weight.copy_(torch.eye(8))
    h = example(interface)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    torch.testing.assert_close(lower(heads, interface)(h), reference(h, h, h, attn_mask=mask)[0])


def test_attention_over_a_map_is_attention_over_its_positions_as_tokens():
    graph = TEMPLATES["single_head_attention"].graph
    module = alive(graph, Interface(Kind.MAP2D, 8, torch.float64))
    tokens = lower(graph, Interface(Kind.TOKENS, 8, torch.float64))
    tokens.load_state_dict(module.state_dict())
    h = example(module.interface)
    flat = tokens(h.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(h.shape)
    torch.testing.assert_close(module(h), flat)


def test_drawn_parameters_are_nan_until_they_are_drawn():
    module = lower(TEMPLATES["single_head_attention"].graph, Interface(Kind.TOKENS, 8))
    assert module.query_weight.isnan().all()
    assert (module.norm_weight == 1).all()
    assert (module.project_weight == 0).all()


@pytest.mark.parametrize(("title", "interface"), FITTING, ids=str)
def test_a_copy_a_pickle_and_a_saved_state_compute_the_same(title, interface):
    module = alive(TEMPLATES[title].graph, interface)
    h = example(interface)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    loaded = lower(module.graph, interface)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(other(h), module(h))
        assert all(a is not b for a, b in zip(other.parameters(), module.parameters(), strict=True))


@pytest.mark.parametrize(("title", "interface"), FITTING, ids=str)
def test_functional_call_and_functional_equal_forward(title, interface):
    module, other = alive(TEMPLATES[title].graph, interface), alive(TEMPLATES[title].graph, interface, seed=7)
    h = example(interface)
    assert torch.equal(torch.func.functional_call(module, dict(other.named_parameters()), (h,)), other(h))
    assert torch.equal(module.functional(other.ordered_parameters(), h), other(h))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's CPU attention has no batching rule
@pytest.mark.parametrize(("title", "interface"), FITTING, ids=str)
def test_replicas_under_vmap_equal_each_alone(title, interface):
    modules = [alive(TEMPLATES[title].graph, interface, seed) for seed in range(3)]
    stacked = [torch.stack(same) for same in zip(*(m.ordered_parameters() for m in modules), strict=True)]
    h = example(interface)

    def loss(parameters, h):
        return modules[0].functional(parameters, h).square().mean()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, h)
    for i, module in enumerate(modules):
        loss(module.ordered_parameters(), h).backward()
        for grad, name in zip(grads, module.parameter_names, strict=True):
            torch.testing.assert_close(grad[i], module.get_parameter(name).grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("title", "interface"), FITTING, ids=str)
def test_it_compiles_as_one_graph(title, interface):
    torch.compiler.reset()
    module = alive(TEMPLATES[title].graph, interface)
    h = example(interface)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(h), module(h))


def test_it_compiles_backward_and_for_any_batch():
    torch.compiler.reset()
    module = alive(TEMPLATES["squeeze_excitation"].graph, Interface(Kind.MAP2D, 8))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3, 5):
        h = example(module.interface, batch)
        want = torch.autograd.grad(module(h).sum(), list(module.parameters()))
        got = torch.autograd.grad(compiled(h).sum(), list(module.parameters()))
        for a, b in zip(want, got, strict=True):
            torch.testing.assert_close(a, b)


def test_it_exports_with_a_dynamic_batch():
    module = alive(TEMPLATES["conv3"].graph, Interface(Kind.MAP2D, 8))
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(module, (example(module.interface, 3),), dynamic_shapes=({0: batch},))
    h = example(module.interface, 7)
    torch.testing.assert_close(exported.module()(h), module(h))


@pytest.mark.parametrize("title", ["conv3", "depthwise_separable", "wide_mlp", "normalisation", "squeeze_excitation"])
def test_channels_last_maps_stay_channels_last(title):
    module = alive(TEMPLATES[title].graph, Interface(Kind.MAP2D, 8))
    h = example(module.interface).contiguous(memory_format=torch.channels_last)
    out = module(h)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, module(h.contiguous()))


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_a_module_that_is_cast_computes_in_the_new_type(change):
    module = change(alive(TEMPLATES["conv3"].graph, Interface(Kind.MAP2D, 8)))
    dtype = module.near_weight.dtype
    assert module(example(module.interface).to(dtype)).dtype is dtype


def test_autocast_computes_in_its_type():
    module = alive(TEMPLATES["conv3"].graph, Interface(Kind.MAP2D, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(example(module.interface)).dtype is torch.bfloat16


def test_a_forward_without_grad_frees_what_it_no_longer_needs():
    nodes = [Node("n0", "tanh")] + [Node(f"n{i}", "tanh", (f"n{i - 1}",)) for i in range(1, 50)]
    module = lower(Graph(tuple(nodes), (), "n49"), Interface(Kind.VECTOR, 4))
    assert module._registers == 1
    h = torch.randn(3, 4)
    want = h
    for _ in nodes:
        want = want.tanh()
    assert torch.equal(module(h), want)


def test_one_parameter_in_two_places_is_one_parameter():
    nodes = (
        Node("a", "linear", (INPUT,), ("w",), (("out", CHANNELS),)),
        Node("b", "linear", ("a",), ("w",), (("out", CHANNELS),)),
    )
    graph = Graph(nodes, (Parameter("w", (CHANNELS, CHANNELS), Initialiser.LECUN_UNIFORM),), "b")
    module = alive(graph, Interface(Kind.VECTOR, 4))
    assert list(dict(module.named_parameters())) == ["w"]
    h = torch.randn(3, 4)
    torch.testing.assert_close(module(h), h @ module.w.T @ module.w.T)
