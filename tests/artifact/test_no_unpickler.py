"""No Python unpickler can be reached from artifact, checkpoint or bus bytes: the tree holds no call that runs one."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def sources() -> list[Path]:
    paths = [path for top in ("esper", "kernels_triton") for path in sorted((ROOT / top).rglob("*.py"))]
    return [path for path in paths if "api" not in path.relative_to(ROOT).parts]


def offences(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLERS:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if name == "torch.load" and not safe:
                found.append("torch.load without weights_only=True")
            if name in ("torch.export.load", "export.load", "torch.package.PackageImporter"):
                found.append(name)
            if name.endswith("np.load") or name == "numpy.load":
                found += ["allow_pickle" for k in node.keywords if k.arg == "allow_pickle"]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_calls_an_unpickler(path):
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import os, dill.detect",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.export.load(path)",
        "np.load(path, allow_pickle=True)",
        "import marshal as m",
    ],
)
def test_the_search_finds_what_it_is_for(text):
    assert offences(text)


def test_safe_loads_are_let_through():
    assert offences("torch.load(path, weights_only=True); safetensors.torch.load(data); torch.jit.load(data)") == []
