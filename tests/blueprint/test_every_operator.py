"""Every operator at every kind it declares, by itself: shape, cost, gradient, causality and source against torch."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from esper.blueprint.emit import emit_function
from esper.blueprint.interface import DTYPES, Interface, Kind
from esper.blueprint.operators import OPERATORS

from .strategies import positions, single
from .test_emit import as_python, as_torchscript, outcome, same_bits
from .test_infer import agrees_with_torch
from .test_lower import alive

AT = [(name, kind) for name, row in OPERATORS.items() for kind in Kind if kind in row.kinds]
IDS = [f"{name}-{kind.value}" for name, kind in AT]
CAUSAL = [(n, k) for n, k in AT if OPERATORS[n].can_be_causal and k in (Kind.TOKENS, Kind.MAP1D)]
few = settings(max_examples=3, suppress_health_check=list(HealthCheck))


def even(kind, causal=False):
    """Interfaces of a kind with 2 to 12 channels, most of them a multiple of 4."""
    counts = st.sampled_from([4, 8, 12, 12, 2, 5, 6])
    return st.builds(lambda channels: Interface(kind, channels, torch.float64, causal), counts)


def drawn(data, name, interface):
    graph = data.draw(single(name, interface))
    assume(graph is not None)
    return graph


def test_there_are_at_least_30():
    assert len(OPERATORS) >= 30


@pytest.mark.parametrize(("name", "kind"), AT, ids=IDS)
@few
@given(data=st.data())
def test_costs_are_what_torch_counts_and_shapes_are_kept(name, kind, data):
    interface = data.draw(even(kind))
    graph = drawn(data, name, interface)
    sizes = data.draw(positions(interface))
    agrees_with_torch(graph, interface, data.draw(st.integers(1, 3)), sizes)


@pytest.mark.parametrize(("name", "kind"), AT, ids=IDS)
@few
@given(data=st.data())
def test_source_and_torchscript_are_the_lowering_and_gradients_are_finite(name, kind, data):
    interface = data.draw(even(kind))
    source_is_the_lowering(drawn(data, name, interface), interface, 2, data.draw(positions(interface)))


def source_is_the_lowering(graph, interface, batch, sizes):
    module = alive(graph, interface)
    h = interface.example(batch, *sizes, generator=torch.Generator().manual_seed(2))
    parameters = module.ordered_parameters()
    want = outcome(lambda h, *p: module.functional(p, h), h, parameters)
    assert want[0].shape == h.shape
    assert all(torch.isfinite(value).all() for value in want)
    source = emit_function(graph, interface, "grow")
    same_bits(outcome(as_python(source, "grow"), h, parameters), want)
    script = as_torchscript(source, "grow")
    with torch.no_grad():
        plain = module(h)  # torch multiplies some strided tensors in another order where no gradient is wanted
        for _ in range(2):  # the second call runs the optimised graph
            same_bits([script(h, *parameters)], [plain])


@pytest.mark.parametrize(("name", "kind"), CAUSAL, ids=[f"{n}-{k.value}" for n, k in CAUSAL])
@few
@given(data=st.data())
def test_a_causal_operator_does_not_look_ahead(name, kind, data):
    interface = data.draw(even(kind, causal=True))
    graph = drawn(data, name, interface)
    module, length = alive(graph, interface), data.draw(st.integers(2, 9))
    h = interface.example(2, length, generator=torch.Generator().manual_seed(3))
    at, position = data.draw(st.integers(1, length - 1)), 1 if kind is Kind.TOKENS else 2
    changed = h.clone()
    changed.narrow(position, at, length - at).mul_(-2).add_(0.7)
    with torch.no_grad():
        assert torch.equal(module(h).narrow(position, 0, at), module(changed).narrow(position, 0, at))


@pytest.mark.parametrize(("name", "kind"), AT, ids=IDS)
@settings(max_examples=1, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_element_type_runs_forward_and_backward(name, kind, data):
    graph = drawn(data, name, Interface(kind, 8))
    for dtype in DTYPES:
        interface = Interface(kind, 8, dtype)
        h = interface.example(2, *[3] * kind.position_dims).requires_grad_()
        out = alive(graph, interface)(h)
        out.sum().backward()
        assert out.dtype is h.grad.dtype is dtype
        assert torch.isfinite(h.grad).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), AT, ids=IDS)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_of_each_cost_what_torch_counts_and_have_the_lowerings_source(name, kind, data):
    interface = data.draw(even(kind))
    graph = drawn(data, name, interface)
    sizes, batch = data.draw(positions(interface)), data.draw(st.integers(1, 3))
    agrees_with_torch(graph, interface, batch, sizes)
    source_is_the_lowering(graph, interface, batch, sizes)
