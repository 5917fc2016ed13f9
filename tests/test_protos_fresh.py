"""The committed message code is what the generator makes of proto/; the contracts keep their rules."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import esper.api
from tests.requirements import require

ROOT = Path(__file__).parents[1]
PROTOS = sorted((ROOT / "proto" / "esper").rglob("*.proto"))
GENERATOR = ROOT / ".venv-proto" / "bin" / "python"


def test_generated_code_is_fresh():
    if not GENERATOR.exists():
        require("proto", "the generator's environment is absent; `make test` sets it up")
    result = subprocess.run([GENERATOR, ROOT / "proto/generate.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_component_has_a_service():
    components = {
        "oona",
        "urza",
        "tezzeret",
        "urabrask",
        "karn",
        "kasmina",
        "tolaria",
        "tamiyo",
        "simic",
        "emrakul",
        "nissa",
    }
    serving = {path.parts[-3] for path in PROTOS if re.search(r"^service ", path.read_text(), re.MULTILINE)}
    assert components <= serving


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_every_message_field_and_method_is_commented(path):
    """The contract is prose with fields in it."""
    lines = path.read_text().splitlines()
    declares = re.compile(
        r"^\s*(?:message|enum|service|rpc|oneof) \w+|^\s*(?:repeated |optional )?[\w.<>, ]+ \w+ = \d+\b"
    )
    bare = [
        line.strip()
        for number, line in enumerate(lines)
        if declares.match(line) and not re.match(r"^\s*//", lines[number - 1])
    ]
    assert bare == []


def test_generated_modules_import_on_the_installed_runtime():
    names = [module.name for module in pkgutil.walk_packages(esper.api.__path__, "esper.api.")]
    assert len(names) > 30
    for name in names:
        importlib.import_module(name)
    assert "esper.api.urza.v1.library_pb2_grpc" in sys.modules
