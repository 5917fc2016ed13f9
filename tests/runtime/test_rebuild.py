"""A run's model again from its files: of models whose exported source holds more, or less, than their state."""

import pytest
import torch
from torch import nn

from esper.errors import Corrupt
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


@pytest.fixture
def run(tmp_path):
    """A run of that task without fossils, whose model is not as it was made."""
    model = builders.stir(make_task().build_model()).eval()
    found = export_model(model, (builders.rows(),), "A test.")
    (tmp_path / "model.py").write_text(found.source)
    torch.save(found.state, tmp_path / "model.pt")
    spec = {"run_id": "r", "task": f"{__name__}:make_task", "arguments": {}, "import_paths": []}
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


def test_a_fossil_without_weights_is_damage(run):
    handle = builders.handle(targets="2")
    builders.lead(handle.executor, State.FOSSILIZED, handle.optimizer)
    state = {name: tensor for name, tensor in handle.model.state_dict().items() if "esper_" not in name}
    with pytest.raises(Corrupt, match=r"model\.pt has no weights for 2\.esper_0\.body\."):
        _put_used(run, handle.model, state)
