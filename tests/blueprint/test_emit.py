"""Emitted source equals the lowering bit for bit: as Python, as TorchScript, as a module."""

import ast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper.blueprint.emit import IMPORTS, emit_function, emit_module, torchscript
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter
from esper.blueprint.lower import lower
from esper.errors import InvalidRequest
from esper.karn.templates import TEMPLATES

from .strategies import cases, positions
from .test_lower import FITTING, alive, example


def as_python(source, name):
    scope = {"torch": torch, "F": F, "Tensor": Tensor}
    exec(compile(source, name, "exec"), scope)
    return scope[name]


def as_torchscript(source, name):
    unit = torch._C.CompilationUnit()
    unit.define(torchscript(source), lambda word: torch.ops.aten if word == "torch" else None)
    return unit.find_function(name)


def outcome(call, h, parameters):
    """Value and every gradient of `call(h, *parameters)`."""
    leaves = [t.detach().clone().requires_grad_() for t in (h, *parameters)]
    out = call(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves, materialize_grads=True)]


def same_bits(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=100)
@given(case=cases(), batch=st.integers(1, 3), data=st.data())
def test_python_source_is_the_lowering(case, batch, data):
    graph, interface = case
    module = alive(graph, interface)
    h = interface.example(batch, *data.draw(positions(interface)), generator=torch.Generator().manual_seed(2))
    call = as_python(emit_function(graph, interface, "grow"), "grow")
    parameters = module.ordered_parameters()
    want = outcome(lambda h, *p: module.functional(p, h), h, parameters)
    same_bits(outcome(call, h, parameters), want)
    assert torch.equal(module(h).isnan(), want[0].isnan())


@settings(max_examples=25)
@given(case=cases(), data=st.data())
def test_torchscript_source_is_the_lowering(case, data):
    graph, interface = case
    module = alive(graph, interface)
    call = as_torchscript(emit_function(graph, interface, "grow"), "grow")
    for batch in (1, 2, 3):
        h = interface.example(batch, *data.draw(positions(interface)), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            same_bits([call(h, *module.ordered_parameters())], [module(h)])


@pytest.mark.parametrize(("title", "interface"), FITTING, ids=str)
def test_a_templates_torchscript_serves_any_batch_and_positions_with_gradients(title, interface):
    module = alive(TEMPLATES[title].graph, interface)
    call = as_torchscript(emit_function(module.graph, interface, title), title)
    parameters = module.ordered_parameters()
    for batch, size in ((2, 5), (2, 5), (3, 1), (1, 8)):  # the second call runs the optimised graph
        h = interface.example(batch, *[size] * interface.kind.position_dims)
        want = outcome(lambda h, *p: module.functional(p, h), h, parameters)
        got = outcome(call, h, parameters)
        same_bits(got[:1], want[:1])
        # TorchScript differentiates linear and layer_norm by formulas of its own: rounding may differ
        for a, b in zip(got[1:], want[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("title", "interface"), FITTING, ids=str)
def test_the_emitted_module_stands_alone(title, interface):
    source = emit_module(TEMPLATES[title].graph, interface, "Grown")
    assert source.startswith(IMPORTS)
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.partition(".")[0] for name in imported} == {"torch"}
    scope: dict[str, object] = {}
    exec(compile(source, title, "exec"), scope)
    module, grown = alive(TEMPLATES[title].graph, interface), scope["Grown"]()
    assert not grown(example(interface)).any()  # drawn and zero at birth, like the IR says
    grown.load_state_dict(module.state_dict())
    h = example(interface)
    assert torch.equal(grown(h), module(h))


@pytest.mark.parametrize(("title", "interface"), FITTING, ids=str)
def test_lines_are_short_enough_to_read(title, interface):
    graph = TEMPLATES[title].graph
    for source in (emit_function(graph, interface, title), emit_module(graph, interface, "Grown")):
        assert max(map(len, source.splitlines())) <= 120


def test_source_reads_like_a_persons():
    interface = Interface(Kind.TOKENS, 8, causal=True)
    assert emit_function(TEMPLATES["low_rank"].graph, interface, "low_rank").splitlines()[1:] == [
        "def low_rank(x: Tensor, p_down_weight: Tensor, p_up_weight: Tensor) -> Tensor:",
        "    down = F.linear(x, p_down_weight)",
        "    up = F.linear(down, p_up_weight)",
        "    return up",
    ]


@pytest.mark.parametrize(
    "names", [("x", "torch"), ("p_w", "lambda"), ("self", "x_"), ("tensor", "f"), ("print", "range")]
)
def test_node_names_that_mean_something_else_do_no_harm(names):
    first, second = names
    nodes = (Node(first, "linear", (INPUT,), ("w",), (("out", CHANNELS),)), Node(second, "tanh", (first,)))
    graph = Graph(nodes, (Parameter("w", (CHANNELS, CHANNELS), Initialiser.LECUN_UNIFORM),), second)
    interface = Interface(Kind.VECTOR, 4)
    module, h = alive(graph, interface), torch.randn(3, 4)
    source = emit_function(graph, interface, "grow")
    assert torch.equal(as_python(source, "grow")(h, *module.parameters()), module(h))
    assert torch.equal(as_torchscript(source, "grow")(h, *module.parameters()), module(h))


def test_a_name_that_is_no_identifier_is_refused():
    for emit in (emit_function, emit_module):
        with pytest.raises(InvalidRequest, match="'a b' is no name for a function or class"):
            emit(TEMPLATES["conv3"].graph, Interface(Kind.MAP2D, 8), "a b")


def test_the_parameter_order_is_the_canonical_one():
    module = lower(TEMPLATES["single_head_attention"].graph, Interface(Kind.TOKENS, 8))
    source = emit_function(module.graph, module.interface, "f")
    arguments = [argument.arg for argument in ast.parse(source).body[0].args.args]
    assert arguments == ["x", *(f"p_{name}" for name in module.parameter_names)]
