"""A run's model again from its files: of models whose exported source holds more, or less, than their state."""

import errno
from dataclasses import replace

import pytest
import torch
from torch import nn

from esper.errors import Conflict, Corrupt, Exhausted, PreconditionFailed
from esper.host.export import export_model
from esper.kasmina.lifecycle import State
from esper.runtime.rebuild import _put_used, export_run, rebuild_run
from esper.runtime.runs import StoredRun
from tests import builders


class Keeps(nn.Module):
    """A buffer that no state dict has, a constant made in the forward, and a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.fc, self.spare = nn.Linear(5, 3), nn.Linear(2, 2)
        self.register_buffer("shift", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.fc(x) + self.shift + torch.ones(3)


def make_task():
    return builders.task(Keeps)


class Branches(nn.Module):
    """No symbolic trace can follow it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(x) if x.shape[0] < 100 else x


def make_branching_task():
    return builders.task(Branches)


@pytest.fixture
def run(tmp_path):
    return stored(tmp_path, make_task)


def stored(tmp_path, make):
    """A run of that task without fossils, whose model is not as it was made."""
    model = builders.stir(make().build_model()).eval()
    found = export_model(model, (builders.rows(),), "A test.")
    (tmp_path / "model.py").write_text(found.source)
    torch.save(found.state, tmp_path / "model.pt")
    spec = {"run_id": "r", "task": f"{__name__}:{make.__name__}", "arguments": {}, "import_paths": []}
    return StoredRun(tmp_path, spec, {}, {})


def change(run, edit):
    state = torch.load(run.folder / "model.pt", weights_only=True)
    edit(state)
    torch.save(state, run.folder / "model.pt")


def test_constants_and_unused_weights_are_no_damage(run):
    state = torch.load(run.folder / "model.pt", weights_only=True)
    assert {"shift", "_tensor_constant0"} < state.keys() and "spare.weight" not in state
    assert "outputs equal those of model.py" in rebuild_run(run)
    export_run(run, str(run.folder / "out"))
    again = torch.load(run.folder / "out" / "model.pt", weights_only=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_weights_that_are_missing_are_damage(run):
    change(run, lambda state: state.pop("fc.weight"))
    with pytest.raises(Corrupt, match=r"fc\.weight"):
        rebuild_run(run)
    with pytest.raises(Corrupt, match=r"fc\.weight"):
        export_run(run, "")


def test_weights_without_names_are_damage(run):
    torch.save([torch.ones(3)], run.folder / "model.pt")
    with pytest.raises(Corrupt, match=r"model\.pt must hold weights by name, got list"):
        rebuild_run(run)


def test_a_graft_that_is_none_is_damage(run):
    for graft in ({"seed": 3}, {"no_such_key": 1}, "a", None):
        with pytest.raises(Corrupt, match=r"result\.json: a graft of run r does not parse"):
            rebuild_run(replace(run, result={"grafts": [graft]}))


def test_a_fossil_without_weights_is_damage(run):
    handle = builders.handle(targets="2")
    builders.lead(handle.executor, State.FOSSILIZED, handle.optimizer)
    state = {name: tensor for name, tensor in handle.model.state_dict().items() if "esper_" not in name}
    with pytest.raises(Corrupt, match=r"model\.pt has no weights for 2\.esper_0\.body\."):
        _put_used(run, handle.model, state)


def test_a_program_for_evaluation_is_rebuilt_and_exported_and_said_to_be_one(tmp_path):
    run = stored(tmp_path, make_branching_task)
    assert "outputs equal those of model.py" in rebuild_run(run)
    said = export_run(run, str(tmp_path / "out"))
    assert "a program for evaluation, good for inputs with\n    x: torch.float32 [*, 5]" in said
    assert "because Branches cannot be written as plain source" in said
    assert "x.shape[0] <= 99" in (tmp_path / "out" / "model.py").read_text()


def test_a_program_that_does_not_take_a_batch_is_said_to_be_the_reason(tmp_path):
    run = stored(tmp_path, make_branching_task)
    source = (tmp_path / "model.py").read_text()
    (tmp_path / "model.py").write_text(source.replace("x.shape[0] <= 99", "x.shape[0] <= 1"))
    with pytest.raises(PreconditionFailed, match=r"model\.py does not take a batch .* x\.shape\[0\] <= 1"):
        rebuild_run(run)


def test_layers_are_said_to_be_layers(run, tmp_path):
    assert export_run(run, str(tmp_path / "out")).endswith("layers, which can be trained further")


def test_an_export_that_cannot_be_written_leaves_the_weights_that_were_there(run, monkeypatch):
    before = (run.folder / "model.pt").read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exhausted, match=r"model\.pt cannot be written: No space left on device; free some disk space"):
        export_run(run, "")
    assert (run.folder / "model.pt").read_bytes() == before
    assert "outputs equal those of model.py" in rebuild_run(run)
    assert not list(run.folder.glob("*.new"))


@pytest.mark.parametrize("name", ["model.py", "model.pt"])
def test_an_export_leaves_a_model_that_no_export_wrote(run, tmp_path, name):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / name).write_text('"""My own model, in torch."""\n')
    with pytest.raises(Conflict, match=rf"mine/{name} was not written by an export .* name another folder with --to"):
        export_run(run, str(mine))
    assert [path.name for path in mine.iterdir()] == [name]
    assert (mine / name).read_text() == '"""My own model, in torch."""\n'


def test_an_export_takes_the_place_of_an_earlier_one(run, tmp_path):
    out = tmp_path / "out"
    export_run(run, str(out))
    (out / "model.pt").write_bytes(b"")
    export_run(run, str(out))
    assert torch.load(out / "model.pt", weights_only=True).keys() == {
        "fc.weight",
        "fc.bias",
        "shift",
        "_tensor_constant0",
    }


@pytest.mark.parametrize("to", ["file", "file/x/y"])
def test_an_export_to_a_file_is_refused(run, tmp_path, to):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Conflict, match=r"because .*/file is a file; name another folder with --to"):
        export_run(run, str(tmp_path / to))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (b"def broken(", "SyntaxError"),
        (b"import no_such_module", "no_such_module"),
        (b"Other = 1", "KeyError: 'Model'"),
        (b"\xff\xfe", "UnicodeDecodeError"),
    ],
)
def test_a_model_py_that_does_not_run_is_damage(run, source, word):
    (run.folder / "model.py").write_bytes(source)
    with pytest.raises(Corrupt, match=rf"model\.py does not run \(.*{word}.*put the file of that run back"):
        rebuild_run(run)


def test_a_model_py_that_raises_is_damage(run):
    source = (run.folder / "model.py").read_text()
    (run.folder / "model.py").write_text(source.replace("return ", "return 1 / 0 * ", 1))
    with pytest.raises(Corrupt, match=r"model\.py does not run \(ZeroDivisionError"):
        rebuild_run(run)
