"""The names of `esper` itself, which users write: they exist, are documented, and none is lost unnoticed."""

import inspect
import subprocess
import sys

import pytest

import esper

NAMES = [
    "wrap", "unwrap", "attach", "Task", "load_task", "Session", "ModelHandle", "SiteHandle", "handle_of", "State",
    "Strategy", "EsperError",
]  # fmt: skip


def test_the_public_names_are_these():
    assert esper.__all__ == NAMES
    assert set(NAMES) <= set(dir(esper))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_there_and_says_what_it_is(name):
    assert inspect.getdoc(getattr(esper, name))


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'warp'; it has wrap, unwrap"):
        _ = esper.warp


def test_the_version_is_the_packages():
    code = "import esper, importlib.metadata as m; print(esper.__version__ == m.version('esper'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_a_wrapped_model_is_wrapped_and_unwrapped_by_public_names_only():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    handle = esper.wrap(model, target_layers=[torch.nn.Linear], seeds_per_layer=4, telemetry_enabled=True)
    x = torch.randn(5, 3)
    assert handle.compare_with_original(x).identical
    assert handle["0"].num_seeds == 4 and handle.model is model
    assert esper.unwrap(model) is model
