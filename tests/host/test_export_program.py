"""A grown model that torch.fx cannot trace, as a program for evaluation: the same outputs, or a clear error."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn

from esper.errors import PreconditionFailed
from esper.host.domain import domain_of
from esper.host.export import export_model, run_source
from esper.host.program import trace_program
from esper.host.trace import entry_of
from esper.kasmina.lifecycle import State
from tests import builders


def written(model, example):
    found = export_model(model, example, "A test.")
    assert found.evaluation_only, "layers were written"
    made = run_source(found.source)
    made.load_state_dict(found.state)
    return found, made.eval()


def rows(count=4, features=5, seed=1):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


class Deep(nn.Module):
    """More rows than two get another layer, and so do fewer: no symbolic trace can know which."""

    def __init__(self, more_than=2):
        super().__init__()
        self.fc, self.few, self.drop = nn.Linear(5, 5), nn.Linear(5, 5), nn.Dropout(0.5)
        self.norm, self.more_than = nn.BatchNorm1d(5), more_than

    def forward(self, x):
        layer = self.fc if x.shape[0] > self.more_than else self.few
        return self.norm(self.drop(layer(x)).relu())


def test_a_branch_on_a_shape_is_written_for_the_side_it_took_and_the_other_side_is_refused():
    model = builders.stir(Deep()).train()
    found, made = written(model, (rows(),))
    assert model.training
    model.eval()
    for count in (3, 4, 9):
        assert torch.equal(made(rows(count)), model(rows(count)))
    with pytest.raises(ValueError, match=r"good only for inputs with x\.shape\[0\] >= 3"):
        made(rows(2))
    assert "few.weight" not in found.state


def test_other_types_and_shapes_are_refused_by_name():
    _, made = written(builders.stir(Deep()), (rows(),))
    for wrong, what in [
        (rows().double(), r"x\.dtype is torch\.float32"),
        (rows()[0], r"x\.dim\(\) == 2"),
        (rows(features=6), r"x\.shape\[1\] == 5"),
    ]:
        with pytest.raises(ValueError, match=what):
            made(wrong)


def test_it_cannot_be_set_to_train_and_says_so():
    found, made = written(builders.stir(Deep()), (rows(),))
    assert not any(module.training for module in made.modules())
    with pytest.raises(RuntimeError, match="cannot be set to train"):
        made.train()
    assert not made.training
    assert "A program for evaluation" in found.source and "x: torch.float32 [*, 5]" in found.source
    assert found.description().startswith("a program for evaluation, good for inputs with\n    x: torch.float32")


class Single(nn.Module):
    """A single row is another matter, and for a single row the width is one too."""

    def forward(self, x):
        if x.shape[0] == 1:
            return x * 3 if x.shape[1] > 8 else x + 1
        return x + 1


def test_a_batch_of_one_is_let_in_only_where_its_own_branches_were_followed():
    found, made = written(Single(), (rows(),))
    for x in (rows(1, 5), rows(1, 8), rows(4, 9), rows(2, 2)):
        assert torch.equal(made(x), Single()(x))
    with pytest.raises(ValueError, match=r"x\.shape\[1\] <= 8"):
        made(rows(1, 9))
    assert any("or x.shape[0] == 1 and" in line for line in found.inputs)


class Meets(nn.Module):
    """Looks at two sizes before they turn out to be one."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x, y):
        gain = (3 if x.shape[0] % 2 == 0 else 1) + (7 if y.shape[0] % 3 == 0 else 0)
        return self.fc(x + y) * gain


def test_branches_on_sizes_that_turn_out_to_be_one_are_both_kept():
    model = builders.stir(Meets()).eval()
    found, made = written(model, (rows(6), rows(6, seed=2)))
    assert "y.shape[0] == x.shape[0]" in found.inputs
    assert torch.equal(made(rows(12), rows(12, seed=3)), model(rows(12), rows(12, seed=3)))
    for count, what in ((8, "% 3"), (9, "% 2")):
        with pytest.raises(ValueError, match=what):
            made(rows(count), rows(count))


class Alone(nn.Module):
    def forward(self, x):
        return x * 3 if x.shape[0] == 1 else x + 1


def test_a_batch_of_one_that_is_something_else_is_refused():
    _, made = written(Alone(), (rows(),))
    assert torch.equal(made(rows(2)), rows(2) + 1)
    with pytest.raises(ValueError, match=r"x\.shape\[0\] >= 2"):
        made(rows(1))


def test_an_example_of_one_row_makes_a_program_for_more():
    model = builders.stir(Deep(more_than=20)).eval()
    _, made = written(model, (rows(1),))
    for count in (1, 2, 20):
        assert torch.equal(made(rows(count)), model(rows(count)))
    with pytest.raises(ValueError, match=r"x\.shape\[0\] <= 20"):
        made(rows(21))


class Fixed(nn.Module):
    """Goes through its rows in Python, so that a trace holds for that many only."""

    def forward(self, x):
        return sum(x[i] for i in range(x.shape[0]))


def test_what_depends_on_the_number_of_rows_in_python_is_fixed_to_it_and_says_so():
    found, made = written(Fixed(), (rows(),))
    assert torch.equal(made(rows(seed=2)), Fixed()(rows(seed=2)))
    assert "x: torch.float32 [4, *]" in found.inputs
    with pytest.raises(ValueError, match=r"x\.shape\[0\] == 4"):
        made(rows(5))


@dataclasses.dataclass
class Output:
    scores: torch.Tensor
    hidden: list
    missing: torch.Tensor | None = None


class Mixed(nn.Module):
    """Keyword arguments, a flag, tied weights, a buffer in no state dict, a constant, an output class."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.arange(5.0), persistent=False)

    def forward(self, ids, other=None, scale=None, double=False):
        if ids.shape[1] > 20:
            raise RuntimeError("too long")
        h = self.embed(ids) + self.shift + torch.tensor([1.0, 0, 0, 0, 2.0])
        h = h * (2 if double else 1) * (1 if scale is None else scale)
        return Output(self.head(h), [h, {"mean": h.mean(1)}])


def test_arguments_by_name_tied_weights_constants_and_output_classes():
    model, ids = Mixed().eval(), torch.arange(6).reshape(2, 3)
    example = {"ids": ids, "scale": torch.tensor(2.0), "double": True, "other": None}
    found, made = written(model, example)
    got, want = made(**example), model(**example)
    assert list(got) == ["scores", "hidden"]
    assert torch.equal(got["scores"], want.scores) and torch.equal(got["hidden"][0], want.hidden[0])
    assert torch.equal(got["hidden"][1]["mean"], want.hidden[1]["mean"])
    longer = example | {"ids": torch.arange(28).reshape(4, 7) % 7}
    assert torch.equal(made(**longer)["scores"], model(**longer).scores)
    assert [name for name in found.state if name.endswith("weight")] == ["embed.weight"]
    assert {"embed.weight", "shift"} < found.state.keys() and len(found.state) == 3
    with pytest.raises(ValueError, match=r"double is True"):
        made(**example | {"double": False})
    with pytest.raises(ValueError, match=r"ids\.shape\[1\] <= 20"):
        made(**example | {"ids": torch.zeros(2, 21, dtype=torch.long)})


class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.body(x).relu()
        return self.head(h if x.shape[0] > 1 else h * 2)


def test_a_fossil_that_is_a_branch_is_in_it_and_nothing_of_esper_is_needed(tmp_path):
    handle = builders.handle(builders.stir(Host()), "body", rows())
    builders.lead(handle.executor, State.FOSSILIZED, handle.optimizer)
    model = builders.stir(handle.model).eval()
    found, made = written(model, (rows(),))
    branch = [name for name in model.state_dict() if "esper_" in name]
    assert branch and set(branch) <= found.state.keys()
    assert torch.equal(made(rows(7)), model(rows(7)))
    zeroed = run_source(found.source)
    zeroed.load_state_dict(found.state | {name: torch.zeros_like(found.state[name]) for name in branch})
    assert not torch.allclose(zeroed(rows()), made(rows())), "the branch does nothing"
    (tmp_path / "model.py").write_text(found.source)
    torch.save(found.state, tmp_path / "model.pt")
    torch.save((rows(7), model(rows(7)).detach()), tmp_path / "example.pt")
    check = (
        "import sys, torch; torch.set_num_threads(1); from model import load; x, y = torch.load('example.pt'); "
        "torch.testing.assert_close(load()(x), y); assert not [m for m in sys.modules if m.startswith('esper')]"
    )
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, timeout=120)


class OnValues(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_a_branch_on_values_is_refused_with_both_reasons_and_nothing_is_printed(capfd):
    with pytest.raises(PreconditionFailed) as refused:
        export_model(OnValues(), (rows(),), "A test.")
    said = str(refused.value)
    assert "OnValues cannot be written as plain source: its forward cannot be traced at test_export_program.py:" in said
    assert "nor as a program for evaluation by torch.export (" in said and "data-dependent" in said
    assert capfd.readouterr() == ("", "")


@torch.library.custom_op("esper_test::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@thrice.register_fake
def _(x):
    return torch.empty_like(x)


class Foreign(nn.Module):
    def forward(self, x):
        return thrice(x) if x.shape[0] > 1 else x


def test_an_operator_that_plain_torch_does_not_have_is_refused_by_name():
    with pytest.raises(PreconditionFailed, match=r"uses esper_test\.thrice\.default, which plain torch does not have"):
        export_model(Foreign(), (rows(),), "A test.")


class Regions(nn.Module):
    """Turns grad and autocast on and off; `autocast` is what it turns on."""

    def __init__(self, autocast):
        super().__init__()
        self.fc, self.autocast = nn.Linear(5, 5), autocast

    def forward(self, x):
        with torch.enable_grad(), torch.autocast("cpu", enabled=self.autocast, dtype=torch.bfloat16):
            y, z = self.fc(x), x * 2
        with torch.autocast("cpu", enabled=False):
            y = y + z
        return (y, z) if x.shape[0] > 1 else x


def test_regions_that_change_nothing_in_evaluation_are_put_in_line():
    model = builders.stir(Regions(autocast=False)).eval()
    _, made = written(model, (rows(),))
    assert all(torch.equal(a, b) for a, b in zip(made(rows(6)), model(rows(6)), strict=True))


def test_a_region_of_another_precision_is_refused_by_name():
    with pytest.raises(PreconditionFailed, match="its forward uses wrap_with_autocast, which has no plain source"):
        export_model(Regions(autocast=True), (rows(),), "A test.")


class Nested(nn.Module):
    def forward(self, pair):
        return pair[0] if pair[0].shape[0] > 1 else pair[1]


def test_an_argument_that_is_neither_a_tensor_nor_a_constant_is_refused_by_name():
    with pytest.raises(PreconditionFailed, match="its argument pair is a tuple, neither a tensor nor a constant"):
        export_model(Nested(), ((rows(), rows()),), "A test.")


class Counts(nn.Module):
    """Changes in every call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls if x.shape[0] > 1 else x


def test_a_forward_that_changes_from_call_to_call_is_refused():
    with pytest.raises(PreconditionFailed, match="Counts"):
        export_model(Counts(), (rows(),), "A test.")


class Makes(nn.Module):
    """Makes tensors anew in its forward."""

    def forward(self, x):
        return x + torch.arange(x.shape[1]) if x.shape[0] > 1 else x


def test_tensors_made_in_the_forward_follow_the_input_to_its_device():
    found, made = written(Makes(), (rows(),))
    assert "device(" not in found.source and "x.device" in found.source
    assert made(rows().to("meta")).device.type == "meta"


def test_conditions_are_those_of_torch_export():
    """The guards that torch.export checks by itself hold for the same sizes as those written."""
    entry, named = entry_of(Single().eval(), (rows(),))
    program = trace_program(entry, named, "every size")
    exported = torch.export.export(
        entry, (), named, dynamic_shapes={"x": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}}, strict=False
    )
    assert domain_of(exported, named).conditions == program.domain.conditions
    for count, features in [(2, 2), (3, 9), (2, 30)]:
        x = rows(count, features)
        assert all(eval(condition, {"x": x}) for condition in program.domain.conditions)
        exported.module()(x=x)
