"""Every operator under what torch does to a module: replicas at once, and compilation as one graph."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from esper.blueprint.interface import Interface, Kind
from esper.blueprint.operators import OPERATORS

from .strategies import single
from .test_lower import alive

once = settings(max_examples=1, suppress_health_check=list(HealthCheck))
PLACE = {name: Kind.MAP2D if Kind.MAP2D in row.kinds else Kind.TOKENS for name, row in OPERATORS.items()}


def drawn(data, name):
    interface = Interface(PLACE[name], 8)
    graph = data.draw(single(name, interface))
    assume(graph is not None)
    return graph, interface


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", OPERATORS)
@once
@given(data=st.data())
def test_replicas_at_once_equal_each_alone(name, data):
    graph, interface = drawn(data, name)
    modules = [alive(graph, interface, seed) for seed in range(3)]
    stacked = [torch.stack(same) for same in zip(*(m.ordered_parameters() for m in modules), strict=True)]
    h = interface.example(2, *[4] * interface.kind.position_dims)
    grown = torch.func.vmap(lambda p, h: modules[0].functional(p, h), in_dims=(0, None))(stacked, h)
    for i, module in enumerate(modules):
        torch.testing.assert_close(grown[i], module(h), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
@once
@given(data=st.data())
def test_it_compiles_as_one_graph_for_any_batch(name, data):
    graph, interface = drawn(data, name)
    torch.compiler.reset()
    module = alive(graph, interface)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, size in ((2, 4), (3, 5)):
        h = interface.example(batch, *[size] * interface.kind.position_dims)
        torch.testing.assert_close(compiled(h), module(h))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
@once
@given(data=st.data())
def test_it_exports_with_a_dynamic_batch(name, data):
    graph, interface = drawn(data, name)
    module, sizes = alive(graph, interface), [4] * interface.kind.position_dims
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(module, (interface.example(3, *sizes),), dynamic_shapes=({0: batch},))
    h = interface.example(7, *sizes)
    torch.testing.assert_close(exported.module()(h), module(h))
