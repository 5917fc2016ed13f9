"""A transformer of twelve layers, each compiled by itself, grown and culled one seed at a time."""

import itertools

import pytest
import torch
import torch._dynamo
from torch import nn

from esper.kasmina.lifecycle import State
from tests import builders

# dynamo looks at .grad of what it is handed, and means to hide the warning it causes
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

DEPTH = 12
GRAPHS = 4  # half of torch's own limit for one piece of code, whatever the depth


class Layer(nn.Module):
    """A transformer's layer, normalised before each half. Torch does not compile into its own layers' classes."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h):
        batch, length, width = h.shape
        split = self.qkv(self.before(h)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*split.unbind(0), is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return h + self.down(nn.functional.gelu(self.up(self.between(h))))


def transformer():
    return nn.Sequential(nn.Embedding(11, 8), *[Layer() for _ in range(DEPTH)], nn.Linear(8, 11))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def grown_one_by_one(model, call):
    """Activate, ramp and cull a seed in each layer in turn, comparing with the uncompiled model after each move.

    A ramp and a cull that compile anything raise.
    """
    x = builders.ids()
    handle = builders.handle(model, [Layer], x, seeds_per_layer=1)
    executor = handle.executor
    executor.max_live = DEPTH

    def agrees():
        out = call(x)
        with torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-5)
        return out.detach().clone()

    seen = [agrees()]
    for record in executor.table:
        builders.lead(executor, State.GRAFTING, handle.optimizer, seed=record.id, artifact_id=str(record.id))
        seen.append(agrees())
        with torch._dynamo.config.patch(error_on_recompile=True):
            executor.hold_alpha(record.id, 0.125)
            seen.append(agrees())
            executor.hold_alpha(record.id, 1.0)
            seen.append(agrees())
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))  # every move shows in the output
    with torch._dynamo.config.patch(error_on_recompile=True):
        for index, record in enumerate(executor.table):
            executor.cull(record.id, handle.optimizer, 50 + index, "test")
            agrees()
        assert torch.equal(agrees(), seen[0])


def compiled_by_layer(backend):
    model = builders.seeded(transformer)
    for layer in model[1:-1]:
        layer.compile(backend=backend, fullgraph=True)
    return model


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_layer_by_layer_it_stays_within_the_limit_and_is_never_stale():
    model = compiled_by_layer("eager")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=GRAPHS):
        grown_one_by_one(model, model)
    assert 2 <= graphs() <= GRAPHS


@pytest.mark.slow
def test_layer_by_layer_by_inductor_it_is_never_stale():
    model = compiled_by_layer("inductor")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=GRAPHS):
        grown_one_by_one(model, model)
    assert 2 <= graphs() <= GRAPHS


def test_the_check_can_fail_a_model_compiled_as_a_whole_hits_the_limit():
    model = builders.seeded(transformer)
    call = torch.compile(model, backend="eager", fullgraph=True)
    limited = torch._dynamo.config.patch(recompile_limit=GRAPHS)  # each graph of the whole takes a second to trace
    with limited, pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        grown_one_by_one(model, call)
