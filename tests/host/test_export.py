"""A grown model as plain source: it says the same, without Esper, or it is refused."""

import math
import re
import subprocess
import sys

import pytest
import torch
import torch.fx
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


def test_an_activation_nobody_can_name_makes_a_program():
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, activation=torch.tanh, batch_first=True)
    model, x = nn.Sequential(layer).eval(), torch.randn(2, 5, 6)
    found, made = exported(model, x)
    assert found.evaluation_only
    torch.testing.assert_close(made(x), model(x))


class Masks(nn.Module):
    """Uses values that have no source of their own, a function of math, and tensors that no state dict has."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)
        self.register_buffer("mask", torch.tensor([False, True, False, True, False]), persistent=False)
        self.shift = torch.arange(5.0)

    def forward(self, x, scale=None):
        x = self.fc(x) * (1.0 if scale is None else scale) / math.sqrt(x.shape[1])
        x = x + self.shift + torch.ones(5)
        x = x.to(torch.device("cpu")).masked_fill(self.mask, float("-inf")).softmax(-1)
        return {"all": x, "parts": (x[:, :2], None)}


def test_constants_defaults_and_structured_outputs_are_exported_and_the_model_is_left_alone():
    model, x = Masks().eval(), builders.rows()
    attributes, want = set(vars(model)), model(x)
    _, made = exported(model, x)
    got = made(x)
    assert torch.equal(got["all"], want["all"]) and torch.equal(got["parts"][0], want["parts"][0])
    assert set(vars(model)) == attributes
    scaled = export_model(model, {"x": x, "scale": torch.tensor(2.0)}, "A test.")
    made = run_source(scaled.source)
    made.load_state_dict(scaled.state)
    assert torch.equal(made.eval()(scale=torch.tensor(3.0), x=x)["all"], model(x, torch.tensor(3.0))["all"])


def test_double_precision_and_settings_that_a_repr_leaves_out_are_kept():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Flatten(2)
    )
    assert torch.equal(exported(model.eval(), builders.images())[1](builders.images()), model(builders.images()))
    model, x = grown("linear_vector")
    model, x = model.double(), x.double()
    assert torch.equal(exported(model, x)[1](x), model(x))


def test_every_modules_mode_comes_back():
    model = builders.conv_net(norm=True).train()
    model[1].eval()
    export_model(model, (builders.images(),), "A test.")
    assert model.training and not model[1].training


def test_an_operation_in_place_is_not_dropped():
    class Doubles(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x):
            y = self.fc(x)
            y.mul_(2)
            return y

    model, x = Doubles().eval(), builders.rows()
    assert torch.equal(exported(model, x)[1](x), model(x))


def test_a_refusal_names_the_place():
    with pytest.raises(PreconditionFailed, match=r"cannot be traced at test_export\.py:\d+ in forward \("):
        export_model(Branches(), (builders.rows(),), "A test.")


def elsewhere(x):
    return x * 2


torch.fx.wrap("elsewhere")


class Calls(nn.Module):
    def forward(self, x):
        return elsewhere(x)


def test_a_function_of_another_package_makes_a_program_that_says_why():
    found, made = exported(Calls(), builders.rows())
    assert re.search(r"Calls cannot be written .*test_export\.elsewhere, which plain torch", found.reason)
    assert torch.equal(made(builders.rows()), 2 * builders.rows())


def test_an_attention_that_no_constructor_call_of_ours_makes_is_a_program():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, kdim=6, vdim=6, batch_first=True)

        def forward(self, x, y):
            return self.attention(x, y, y, need_weights=False)[0]

    found = export_model(Wide(), (torch.randn(2, 3, 4), torch.randn(2, 5, 6)), "A test.")
    assert found.evaluation_only and "Wide cannot be written as plain source" in found.reason


def test_layers_that_say_something_else_or_do_not_run_are_not_given_out():
    class Fewer(nn.Module):
        """Calls a branch on the one example that it was traced without."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x):
            return self.fc(x) if isinstance(x, torch.fx.Proxy) else self.fc(x)[0], 1

    assert "the plain source of Fewer gives other outputs" in exported(Fewer(), builders.rows())[0].reason

    class Missing(Fewer):
        def forward(self, x):
            return self.fc(x).absent() if isinstance(x, torch.fx.Proxy) else self.fc(x)

    model = Missing()
    found, made = exported(model, builders.rows())
    assert "the plain source of Missing does not run (AttributeError" in found.reason
    assert torch.equal(made(builders.rows()), model(builders.rows()))
