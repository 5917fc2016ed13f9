"""A grown model written as plain torch and loaded where there is no Esper; or the refusal to write it."""

import copy
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.flow.architectures import Architecture
from bench.flow.lives import RAMP_STEPS, Grown
from bench.flow.observed import some_sites, wrapped
from bench.flow.splice import draw
from esper.errors import PreconditionFailed, WrapRefused
from esper.host.export import Exported, export_model

# Without `site` no .pth file is read, so that packages installed in place, as Esper is, are not found.
_LOADED_ELSEWHERE = """
import importlib.util, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("esper") is None, "esper can be imported here"
from model import load
import torch
from torch.utils._pytree import tree_leaves
torch.set_num_threads(1)
inputs, expected = torch.load("example.pt", weights_only=True)
with torch.no_grad():
    outputs = [leaf for leaf in tree_leaves(load()(**inputs)) if isinstance(leaf, torch.Tensor)]
assert len(outputs) == len(expected), f"{len(outputs)} outputs for {len(expected)}"
for output, wanted in zip(outputs, expected):
    torch.testing.assert_close(output, wanted)
packages = {"esper", "transformers", "torch_geometric"}
assert not [name for name in sys.modules if name.partition(".")[0] in packages]
"""


def export_differences(architecture: Architecture) -> list[str]:
    """Of a grown model's export: what it gives in a process without Esper, or what the refusal lacks."""
    try:
        site = some_sites(wrapped(architecture))[0]
    except WrapRefused as error:
        return [f"refused: {error}"]
    grown = Grown.at(architecture, site, "bottleneck_mlp")
    draw(grown.graft, seed=7)
    grown.handle.executor.step_ramps(RAMP_STEPS)
    grown.fossilise()
    model = grown.handle.model.train()
    before, attributes = copy.deepcopy(model.state_dict()), {name: set(vars(m)) for name, m in model.named_modules()}
    wrong, found = [], None
    try:
        found = export_model(model, grown.inputs, "A grown model.")
    except PreconditionFailed as error:
        wrong += _refusal(architecture, type(model).__name__, str(error))
    else:
        wrong += [f"was written, though it was to be refused: {architecture.untraceable}"] * bool(
            architecture.untraceable
        )
    wrong += [] if all(m.training for m in model.modules()) else ["the mode did not come back"]
    wrong += [
        f"{name} has {set(vars(m)) ^ attributes[name]}"
        for name, m in model.named_modules()
        if set(vars(m)) != attributes[name]
    ]
    wrong += [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    return wrong + (_loaded_elsewhere(found, grown) if found else [])


def _refusal(architecture: Architecture, name: str, said: str) -> list[str]:
    if not architecture.untraceable:
        return [said]
    return [
        f"the refusal does not name {part}: {said}" for part in (name, architecture.untraceable) if part not in said
    ]


def _loaded_elsewhere(found: Exported, grown: Grown) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.py").write_text(found.source)
        torch.save(found.state, Path(folder) / "model.pt")
        torch.save((dict(grown.inputs), grown.outputs()), Path(folder) / "example.pt")
        packages = str(Path(torch.__file__).parents[1])
        command = [sys.executable, "-S", "-c", _LOADED_ELSEWHERE, packages]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return [] if done.returncode == 0 else [done.stderr.strip().rpartition("\n")[2]]
