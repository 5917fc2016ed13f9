"""docs/embedding.md says what the native library has: every schema, letter by letter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.ops import extension
from tests.requirements import require

from .schemas import defined

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/embedding.md").read_text()
SCHEMAS = defined()


def documented() -> dict[str, str]:
    """Name of each op to the schema under its heading, on one line."""
    blocks = re.findall(r"^### (\w+)\n+((?:    .*\n)+)", PAGE, re.M)
    return {name: re.sub(r"\s+", " ", block).strip() for name, block in blocks}


def test_the_schemas_are_read():
    assert {"blend", "blend_backward"} <= set(SCHEMAS)


@pytest.mark.parametrize("op", SCHEMAS)
def test_every_op_is_on_the_page_with_its_schema(op):
    assert documented().get(op) == SCHEMAS[op]


def test_the_page_names_no_other_op():
    assert set(documented()) == set(SCHEMAS)


@pytest.mark.parametrize("op", SCHEMAS)
def test_the_loaded_library_has_these_schemas(op):
    require("cpp", extension.load().missing)
    registered = getattr(torch.ops.esper_native, op).default._schema
    assert str(registered).removeprefix("esper_native::") == SCHEMAS[op]


@pytest.mark.parametrize("page", ["README.md", "docs/ops.md"])
def test_the_page_is_linked(page):
    assert "embedding.md)" in (ROOT / page).read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:examples|csrc|esper|tests)/[\w./]+)`", PAGE))))
def test_a_file_it_names_is_there(path):
    assert (ROOT / path).exists() or path.endswith(".so")


COMPILED = """
import sys

sys.path.insert(0, "examples/external_trainer")
from shim import blend

leaves = [torch.rand(shape, requires_grad=True) for shape in [(4, 8), (4, 3), (4, 5), (2,)]]


def site(host, first, second, alphas, convex):
    return blend(host.tanh(), [first, second], alphas, [(0, 3), (3, 8)], channel_dim=1, convex=convex).sin()


for convex in (False, True):
    compiled = torch.compile(site, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(*leaves, convex).sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(site(*leaves, convex).sum(), leaves))
"""


def test_its_python_runs_and_what_it_says_of_compiling_is_so():
    require("cpp", extension.load().missing)
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(snippets) == 2
    code = "\n".join(snippets).replace("libesper_native.so", str(extension.LIBRARY))
    run = subprocess.run([sys.executable, "-c", code + COMPILED], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
