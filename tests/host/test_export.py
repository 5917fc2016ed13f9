"""A grown model as plain source: it says the same, without Esper, or it is refused."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from esper.errors import PreconditionFailed
from esper.host.export import export_model, run_source
from esper.host.graft import Strategy
from esper.kasmina.lifecycle import SeedId, State
from tests import builders
from tests.kasmina.kinds import KINDS, host


def grown(kind, title="bottleneck_mlp", **options):
    model, x, site, _ = host(kind)
    handle = builders.handle(model, site, x)
    builders.lead(handle.executor, State.FOSSILIZED, handle.optimizer, title=title, **options)
    return model.eval(), x


def exported(model, x):
    found = export_model(model, (x,), "A test.")
    made = run_source(found.source)
    made.load_state_dict(found.state)
    return found, made.eval()


@pytest.mark.parametrize("title", ["bottleneck_mlp", "low_rank"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_kind_with_a_fossil_says_the_same_bit_for_bit(kind, title):
    model, x = grown(kind, title)
    found, made = exported(model, x)
    assert torch.equal(made(x), model(x))
    other = x.flip(0)
    assert torch.equal(made(other), model(other))
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in model.parameters())
    assert "import esper" not in found.source and "from esper" not in found.source


@pytest.mark.parametrize("options", [{"strategy": Strategy.GATED}, {"strategy": Strategy.CONVEX}, {"span": (1, 4)}])
@pytest.mark.parametrize("kind", ["linear_vector", "batch_norm_map2d", "attention_sequence_first"])
def test_other_strategies_and_chunks_are_exported(kind, options):
    model, x = grown(kind, **options)
    assert torch.equal(exported(model, x)[1](x), model(x))


def test_several_fossils_of_one_blueprint_share_a_class():
    handle = builders.handle(targets=["0", "2"])
    for site in ("0", "2"):
        builders.lead(handle.executor, State.FOSSILIZED, handle.optimizer, seed=SeedId(site, 0))
    model, x = handle.model.eval(), builders.rows()
    found, made = exported(model, x)
    assert found.source.count("class Blueprint") == 1
    assert torch.equal(made(x), model(x))


def test_the_source_needs_nothing_but_torch(tmp_path):
    model, x = grown("conv2d")
    found, _ = exported(model, x)
    (tmp_path / "model.py").write_text(found.source)
    torch.save(found.state, tmp_path / "model.pt")
    with torch.no_grad():
        torch.save((x, model(x)), tmp_path / "example.pt")
    check = (
        "import sys, torch; torch.set_num_threads(1); from model import load; x, y = torch.load('example.pt'); "
        "torch.testing.assert_close(load()(x), y); assert not [m for m in sys.modules if m.startswith('esper')]"
    )
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, timeout=120)


def test_a_plain_model_is_exported_too_and_its_mode_comes_back():
    model, x = builders.seeded(lambda: builders.conv_net(norm=True)).train(), builders.images()
    assert exported(model, x)[1](x).shape == (4, 3)
    assert model.training


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_a_model_that_cannot_be_traced_is_refused_with_the_usual_cause():
    with pytest.raises(
        PreconditionFailed, match=r"Branches cannot be written as plain source.*a branch on tensor values"
    ):
        export_model(Branches(), (builders.rows(),), "A test.")


class Forgets(nn.Module):
    """Depends on something a trace does not see."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(5, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x) * self.calls


def test_a_source_that_says_something_else_is_refused_with_the_difference():
    with pytest.raises(PreconditionFailed, match=r"gives other outputs \(largest difference"):
        export_model(Forgets(), (builders.rows(),), "A test.")


class Holds(nn.Module):
    """Keeps a parameter and a buffer of its own beside its layers, and a number."""

    def __init__(self, scale):
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.gain = nn.Parameter(torch.randn(3))
        self.register_buffer("shift", torch.randn(3))
        self.scale = scale

    def forward(self, x):
        return (self.fc(x) * self.gain + self.shift) * self.scale


def test_parameters_and_buffers_of_a_block_are_exported():
    model, x = Holds(2.0).eval(), builders.rows()
    _, made = exported(model, x)
    assert torch.equal(made(x), model(x))
    assert set(dict(made.named_parameters())) == set(dict(model.named_parameters()))


def test_an_activation_nobody_can_name_is_refused():
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, activation=torch.tanh, batch_first=True)
    with pytest.raises(PreconditionFailed):
        export_model(nn.Sequential(layer).eval(), (torch.randn(2, 5, 6),), "A test.")
