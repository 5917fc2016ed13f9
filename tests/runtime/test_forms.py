"""`esper export RUN --form`: judged on held-out data, written whole or not at all, read back with torch alone."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from esper.errors import Conflict, Exhausted, InvalidConfig, PreconditionFailed, Unavailable
from esper.host.export import export_model
from esper.runtime import forms
from esper.runtime.drift import Drift, measure_drift
from esper.runtime.forms import export_form
from esper.runtime.rebuild import export_run
from esper.runtime.runs import StoredRun
from tests import builders
from tests.runtime.test_rebuild import make_branching_task

QUICK = ("int8", "bf16", "inference")


def make_task():
    return builders.task(lambda: builders.perceptron(width=32))


def make_scored_task():
    return builders.task(score=lambda outputs, batch: (outputs[:, 0] > batch[1][:, 0]).float())


def make_task_without_held_out():
    return builders.task(held_out=lambda name: [])


def make_exact_task():
    """A loss that any change of the outputs changes by more than a little."""
    return builders.task(loss=lambda outputs, batch: (outputs * 1e4).round().sum(1).sin())


def make_conv_task():
    def rows(name):
        return [(builders.images(8, seed=3), torch.zeros(8))]

    return builders.task(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()),
        batch=lambda step: (builders.images(8, seed=step), torch.zeros(8)),
        held_out=rows,
        loss=lambda outputs, batch: outputs.square().mean(1),
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def run_of(folder, make):
    """A run of that task without fossils, whose model is not as it was made."""
    task = make()
    model = builders.stir(task.build_model()).eval()
    found = export_model(model, (task.batch(0)[0],), "A test.")
    (folder / "model.py").write_text(found.source)
    torch.save(found.state, folder / "model.pt")
    spec = {"run_id": "r", "task": f"{make.__module__}:{make.__name__}", "arguments": {}, "import_paths": []}
    return StoredRun(folder, spec, {}, {})


CHECK = """
import sys, torch
sys.modules["esper"] = None
torch.set_num_threads(1)
from model import load
wanted = torch.load("../expected.pt", weights_only=True)
model = load()
with torch.no_grad():
    for x, y in wanted:
        apart = (model(x) - y).abs().max() / y.abs().max()
        assert apart <= 0.03, apart
assert not [name for name in sys.modules if name.startswith("esper.")]
print("the same")
"""


@pytest.mark.parametrize("make", [make_task, make_branching_task], ids=["layers", "program"])
@pytest.mark.parametrize("name", [*QUICK, pytest.param("aot", marks=pytest.mark.slow)])
def test_a_form_is_read_back_without_esper(name, make, folder):
    run = run_of(folder, make)
    said = export_form(run, name, drift_limit=0.05)
    out = folder / name
    assert said.startswith(f"wrote {out}: ")
    facts = json.loads((out / "form.json").read_text())
    assert facts["form"] == name and facts["versions"]["torch"] == torch.__version__
    held_out = facts["held_out"]
    assert held_out["examples"] == 64 and held_out["loss_change"] <= held_out["limit"] == 0.05
    assert held_out["mean"] >= 0 and held_out["largest"] < 0.03
    files = {path.name: path.stat().st_size for path in out.iterdir()}
    assert facts["size_bytes"] == sum(files.values()) - files["form.json"]
    assert facts["latency"]["ratio"] > 0 and facts["latency"]["rounds"] >= 5
    with torch.no_grad():
        model = make().build_model().eval()
        model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        torch.save([(x, model(x)) for x, _ in make().held_out("test")], folder / "expected.pt")
    child = [sys.executable, "-c", CHECK]
    done = subprocess.run(child, cwd=out, capture_output=True, text=True, timeout=200)
    assert done.stdout == "the same\n", done.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted(["expected.pt", "model.pt", "model.py", name])


def test_the_score_is_told_where_the_task_has_one(folder):
    export_form(run_of(folder, make_scored_task), "inference", drift_limit=0.05)
    held_out = json.loads((folder / "inference" / "form.json").read_text())["held_out"]
    assert 0 < held_out["score"] < 1 and held_out["score"] == held_out["float32_score"]


def test_too_much_drift_leaves_nothing_and_says_figure_limit_and_remedy(folder):
    run = run_of(folder, make_exact_task)
    with pytest.raises(
        PreconditionFailed, match=r"int8: the held-out loss goes from .* and the limit is 1\.000%; .*--drift-limit"
    ):
        export_form(run, "int8", str(folder / "out"))
    assert sorted(path.name for path in folder.iterdir()) == ["model.pt", "model.py"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_over_every_limit(loss):
    drift = Drift(1.0, loss, None, None, 0.0, 0.0, 1)
    with pytest.raises(PreconditionFailed, match="limit is"):
        forms._require_little("int8", drift, 1e9)


@pytest.mark.parametrize(
    ("before", "after", "change"), [(2.0, 2.0, 0.0), (2.0, 1.5, 0.25), (-1.0, -1.1, 0.1), (0.0, 0.0, 0.0)]
)
def test_a_change_counts_either_way(before, after, change):
    assert Drift(before, after, None, None, 0.0, 0.0, 1).loss_change == pytest.approx(change)


def test_drift_is_relative_to_the_float32_outputs():
    task = dataclasses.replace(make_task(), held_out=lambda name: [])
    x = torch.ones(2, 3)
    drift = measure_drift(task, lambda x: 2 * x, lambda x: 2 * x + torch.tensor([0.0, 0.0, 0.3]), [(x, 2 * x)])
    assert (drift.largest, drift.mean) == pytest.approx((0.15, 0.05))
    assert (drift.float32_loss, drift.loss, drift.examples) == pytest.approx((0.0, 0.03, 2))


def test_without_held_out_data_nothing_is_judged(folder):
    with pytest.raises(
        PreconditionFailed, match=r"held_out\('select'\) and held_out\('judge'\) are empty; .*give the task"
    ):
        export_form(run_of(folder, make_task_without_held_out), "int8")


def test_nothing_to_quantise_leaves_nothing(folder):
    with pytest.raises(PreconditionFailed, match=r"nothing of \w+ can be quantised"):
        export_form(run_of(folder, make_conv_task), "int8")
    assert sorted(path.name for path in folder.iterdir()) == ["model.pt", "model.py"]


def test_no_compiler_leaves_nothing(folder):
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(Unavailable, match=r"install g\+\+"):
        export_form(run_of(folder, make_task), "aot")
    assert sorted(path.name for path in folder.iterdir()) == ["model.pt", "model.py"]


def test_an_earlier_form_is_replaced_and_anything_else_is_not(folder):
    run = run_of(folder, make_task)
    export_form(run, "bf16", str(folder / "out"), 0.05)
    export_form(run, "inference", str(folder / "out"), 0.05)
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["form.json", "model.py", "model.ts"]
    with pytest.raises(Conflict, match=r"holds something else than a form \(out\); name another folder"):
        export_form(run, "inference", str(folder), 0.05)
    assert sorted(path.name for path in folder.iterdir()) == ["model.pt", "model.py", "out"]


def test_what_somebody_put_beside_a_form_is_not_lost(folder):
    run, out = run_of(folder, make_task), folder / "out"
    export_form(run, "bf16", str(out), 0.05)
    with pytest.raises(Conflict, match="holds a form for inference"):
        export_run(run, str(out))
    (out / "serve.py").write_text("precious")
    with pytest.raises(Conflict, match=r"serve\.py"):
        export_form(run, "bf16", str(out), 0.05)
    assert (out / "serve.py").read_text() == "precious"
    plain = folder / "plain"
    export_run(run, str(plain))
    with pytest.raises(Conflict, match=r"something else than a form \(model\.pt, model\.py without a form\.json\)"):
        export_form(run, "bf16", str(plain), 0.05)
    other = folder / "other"
    other.mkdir()
    (other / "form.json").write_text("{}")
    with pytest.raises(Conflict, match="that no form has"):
        export_form(run, "bf16", str(other), 0.05)


def test_a_place_that_cannot_be_written_is_named(folder, monkeypatch):
    run = run_of(folder, make_task)
    (folder / "file").write_text("")
    for to in ("file", "file/x"):
        with pytest.raises(Conflict, match=r"because .*/file is a file; name another folder"):
            export_form(run, "bf16", str(folder / to), 0.05)
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    with pytest.raises(Conflict, match="working directory"):
        export_form(run, "bf16", ".", 0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_the_loss_does_not_see_may_not_turn_infinite(value):
    task = builders.task(loss=lambda outputs, batch: outputs[:, 0].square())
    batch = task.examples(("select", "judge"))

    def form(x):
        outputs = torch.zeros(len(x), 3)
        outputs[:, 1] = value
        return outputs

    with pytest.raises(PreconditionFailed, match="infinite or not a number"):
        measure_drift(task, lambda x: torch.zeros(len(x), 3), form, batch)
    same = measure_drift(task, form, form, batch)
    assert (same.largest, same.mean) == (0.0, 0.0)


def test_a_failure_while_replacing_brings_the_earlier_form_back(folder, monkeypatch):
    run = run_of(folder, make_task)
    export_form(run, "inference", "", 0.05)
    before = (folder / "inference" / "form.json").read_text()
    renamed = type(folder).rename

    made = []

    def fails(path, to):
        made.append(path)
        if len(made) == 2:  # the earlier one has made way
            raise OSError(28, "No space left on device")
        return renamed(path, to)

    monkeypatch.setattr(type(folder), "rename", fails)
    with pytest.raises(Exhausted, match="inference cannot be written: No space left on device; free some disk"):
        export_form(run, "inference", "", 0.05)
    assert len(made) == 3 and (folder / "inference" / "form.json").read_text() == before
    assert sorted(path.name for path in folder.iterdir()) == ["inference", "model.pt", "model.py"]


@pytest.mark.parametrize("limit", [-0.1, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(folder, limit):
    with pytest.raises(InvalidConfig, match="drift limit must be >= 0 and finite"):
        export_form(run_of(folder, make_task), "int8", drift_limit=limit)
