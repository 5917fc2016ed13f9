"""What the README shows is true: its loop runs as it stands, its links and commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esper.cli.main import parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_loop_runs_as_it_stands_and_gives_a_plain_model_back(tmp_path):
    task, loop = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_task.py").write_text(task)
    (tmp_path / "loop.py").write_text(loop)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "loop.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+ parameters$", done.stdout, re.MULTILINE)
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 1 and (runs[0] / "report.html").exists()
    assert not (tmp_path / ".esper" / "runtime.json").exists()  # the runtime that it started has gone with it


def test_the_loop_is_about_twenty_lines():
    _, loop = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert sum(bool(line.strip()) for line in loop.splitlines()) <= 24


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_a_link_leads_somewhere(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("folder", sorted(set(re.findall(r"\| `(esper/\w+)` \|", README))))
def test_the_table_names_folders_that_exist(folder):
    assert (ROOT / folder / "__init__.py").exists()


def test_every_component_has_a_row():
    rows = set(re.findall(r"\| `esper/(\w+)` \|", README))
    components = {path.name for path in (ROOT / "proto/esper/api").iterdir()} - {"common"}
    assert rows == components


@pytest.mark.parametrize("line", re.findall(r"^    \.venv/bin/esper (.*?)(?: +#.*)?$", README, re.MULTILINE))
def test_a_command_is_understood(line):
    assert parser().parse_args(line.split()).do
