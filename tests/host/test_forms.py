"""Forms of a model for inference: what they say, what they refuse, and that a file alone brings them back."""

import os

import pytest
import torch
from torch import nn

from esper.errors import InvalidConfig, PreconditionFailed, Unavailable
from esper.host.forms import FORMS, make_form
from esper.host.int8 import int8_linear
from tests import builders
from tests.host.test_export import grown

QUICK = ("int8", "bf16", "inference")
LEAST_CLOSE = {"int8": 0.03, "bf16": 0.03, "inference": 1e-5, "aot": 1e-5}  # of the largest output


class Branches(nn.Module):
    """Two linear layers that no symbolic trace can follow."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(h.relu() if x.shape[0] < 100 else h)


class OnValues(Branches):
    """A branch that nothing can trace."""

    def forward(self, x):
        return self.last(self.first(x)) if x.sum() > 0 else self.last(self.first(-x))


MODELS = {
    "layers": lambda: grown("linear_vector"),
    "attention": lambda: grown("attention_sequence_first"),
    "convolutions": lambda: (builders.stir(builders.conv_net(norm=True)).eval(), builders.images()),
    "program": lambda: (builders.stir(Branches()).eval(), builders.rows()),
    "tokens": lambda: (builders.stir(builders.Reader()).eval(), builders.ids()),
}


def loaded(name, model, x, folder):
    """A form as its own source loads it from its file."""
    form, plain, _ = make_form(name, model, (x,), "A test.")
    (folder / form.file).write_bytes(form.data)
    space = {"__name__": "model"}
    exec(form.source, space)
    assert "esper." not in form.source.replace(".esper_0.", "")
    return form, plain, space["load"](str(folder / form.file))


def assert_near(form, run, model, x):
    with torch.no_grad():
        got, want = run(x), model(x)
    assert got.dtype is want.dtype and got.shape == want.shape
    assert float((got - want).abs().max()) <= LEAST_CLOSE[form] * float(want.abs().max())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", [*QUICK, pytest.param("aot", marks=pytest.mark.slow)])
def test_a_form_says_what_the_model_says_at_other_sizes_too(name, kind, tmp_path):
    model, x = MODELS[kind]()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    _, _, run = loaded(name, model, x, tmp_path)
    for rows in (x, torch.cat([x, x.flip(0)]), x[:1]):
        assert_near(name, run, model, rows)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


def test_int8_says_what_it_left_and_holds_bytes_for_weights(tmp_path):
    model, x = builders.stir(builders.conv_net(width=16)).eval(), builders.images()
    form, _, run = loaded("int8", model, x, tmp_path)
    assert form.changed == "linear layers in int8: 6.weight"
    assert form.left == "in float32: 0.weight, 3.weight"
    state = run.state_dict()
    assert state["6.weight_int8"].dtype is torch.int8 and state["6.weight_int8"].shape == (144, 3)
    assert state["6.weight_scale"].shape == (3,) and "6.weight" not in state


def test_int8_reaches_into_grafts():
    model, x = grown("linear_vector")
    form, _, _ = make_form("int8", model, (x,), "A test.")
    assert "1.esper_0.body.expand_weight" in form.changed and form.left == ""


class Tied(nn.Module):
    """An embedding that is the output layer too."""

    def __init__(self):
        super().__init__()
        self.tokens, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)

    def forward(self, ids):
        return nn.functional.linear(self.mix(self.tokens(ids)), self.tokens.weight)


class TiedLayers(Tied):
    """The output is a layer that has the embedding's weight; in plain source each has its own."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(self.mix(self.tokens(ids)))


class TiedProgram(Tied):
    """Written as a program, because it has a branch on a shape."""

    def forward(self, ids):
        return super().forward(ids) if ids.shape[0] < 99 else super().forward(ids[:1])


@pytest.mark.parametrize(
    ("make", "changed"), [(Tied, "mix.weight"), (TiedLayers, "mix.weight, head.weight"), (TiedProgram, "mix.weight")]
)
def test_int8_leaves_a_weight_that_is_an_embedding_too(make, changed, tmp_path):
    model, x = builders.stir(make()).eval(), builders.ids()
    form, _, run = loaded("int8", model, x, tmp_path)
    assert (form.changed, form.left) == (f"linear layers in int8: {changed}", "in float32: tokens.weight")
    assert_near("int8", run, model, x)


def test_int8_refuses_a_model_with_nothing_for_it_by_name():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()).eval()
    with pytest.raises(
        PreconditionFailed, match=r"int8: nothing of Sequential can be quantised.*0\.weight.*ask for bf16"
    ):
        make_form("int8", model, (builders.images(),), "A test.")


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 3, 5)])
def test_an_int8_linear_takes_any_leading_sizes(shape):
    weight = torch.randint(-127, 128, (5, 3), dtype=torch.int8)
    scale, bias = torch.rand(3), torch.rand(3)
    x = torch.randn(shape)
    got = int8_linear(x, weight, scale, bias)
    want = x @ (weight * scale) + bias
    assert got.shape == want.shape
    assert torch.allclose(got, want, atol=0.02 * float(want.abs().max()) if want.numel() else 0)


def test_an_int8_linear_keeps_zero_rows_exact_and_lets_nan_through():
    weight, scale = torch.ones(2, 2, dtype=torch.int8), torch.ones(2)
    x = torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [1.0, 1.0]])
    got = int8_linear(x, weight, scale, None)
    assert torch.equal(got[0], torch.zeros(2)) and bool(got[1].isnan().all())
    assert torch.allclose(got[2], torch.full((2,), 2.0))


def test_bf16_weights_are_bf16_in_the_file(tmp_path):
    model, x = grown("linear_vector")
    form, _, run = loaded("bf16", model, x, tmp_path)
    state = torch.load(tmp_path / form.file, weights_only=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert run(x).dtype is torch.float32


class HoldsToFloat32(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(x.float())


def test_bf16_refuses_a_forward_that_holds_to_float32():
    with pytest.raises(PreconditionFailed, match=r"bf16: the forward of \w+ does not run in bfloat16 .*its weights"):
        make_form("bf16", HoldsToFloat32().eval(), (builders.rows(),), "A test.")


def test_a_frozen_form_refuses_what_it_was_not_made_for(tmp_path):
    model, x = grown("linear_vector")
    _, _, run = loaded("inference", model, x, tmp_path)
    with pytest.raises(ValueError, match=r"input\.shape\[1\] == 5"):
        run(x[:, :4])
    with pytest.raises(ValueError, match="float32"):
        run(x.double())


class Divides(Branches):
    """A size that a trace by example takes for a constant, and answers wrongly at another."""

    def forward(self, x):
        return self.last(self.first(x)) / int(x.shape[0])


def test_a_size_that_was_taken_for_a_constant_is_required(tmp_path):
    model, x = builders.stir(Divides()).eval(), builders.rows()
    _, _, run = loaded("inference", model, x, tmp_path)
    assert_near("inference", run, model, x.flip(0))
    with pytest.raises(ValueError, match=r"x\.shape\[0\] == 4"):
        run(x[:2])


def test_a_form_that_says_something_else_at_once_is_refused(monkeypatch):
    from esper.host import torchscript

    monkeypatch.setattr(torchscript.torch.jit, "optimize_for_inference", lambda module: lambda x: torch.zeros(4, 3))
    with pytest.raises(PreconditionFailed, match="what it froze to gives other outputs"):
        make_form("inference", *_example(), "A test.")


@pytest.mark.slow
def test_a_package_that_says_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda _, package_path: package_path)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda _: lambda **named: torch.zeros(4, 3))
    with pytest.raises(PreconditionFailed, match=r"aot: .*the package fails, or gives other outputs"):
        make_form("aot", *_example(), "A test.")


def test_a_model_that_cannot_be_frozen_is_refused_with_the_reason(monkeypatch):
    from esper.host import torchscript

    def fails(*_, **__):
        raise RuntimeError("no such operator\nmore of it")

    monkeypatch.setattr(torchscript.torch.jit, "freeze", fails)
    with pytest.raises(PreconditionFailed, match=r"inference: Sequential cannot be frozen .*no such operator\); ask"):
        make_form("inference", *_example(), "A test.")


def _example():
    model, x = grown("linear_vector")
    return model, (x,)


@pytest.mark.parametrize("name", FORMS)
def test_a_branch_on_values_is_refused_in_every_form(name):
    with pytest.raises(PreconditionFailed, match=r"OnValues cannot be written .*branch on tensor values"):
        make_form(name, OnValues().eval(), (builders.rows(),), "A test.")


@pytest.mark.parametrize(("word", "near"), [("int4", "int8"), ("bfloat16", "bf16"), ("aoti", "aot")])
def test_an_unknown_form_is_named_with_the_nearest(word, near):
    with pytest.raises(InvalidConfig, match=rf"no form '{word}'; did you mean '{near}'\? Known: int8, bf16"):
        make_form(word, *_example(), "A test.")


def test_aot_without_a_compiler_names_the_remedy():
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(Unavailable, match=r"aot: a C\+\+ compiler is needed.*install g\+\+ .*CXX"),
    ):
        make_form("aot", *_example(), "A test.")


@pytest.mark.slow
def test_an_aot_package_refuses_sizes_that_it_would_misread(tmp_path):
    model, x = MODELS["convolutions"]()
    _, _, run = loaded("aot", model, x, tmp_path)
    with pytest.raises(ValueError, match=r"x\.shape|input"):
        run(torch.cat([x, x], dim=2))


@pytest.mark.slow
def test_a_program_that_inductor_cannot_compile_is_refused(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("lowering failed")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    with pytest.raises(PreconditionFailed, match=r"aot: Sequential cannot be compiled .*lowering failed"):
        make_form("aot", *_example(), "A test.")


def test_form_files_leave_no_trace_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in QUICK:
        make_form(name, *_example(), "A test.")
    assert os.listdir(tmp_path) == []  # noqa: PTH208
