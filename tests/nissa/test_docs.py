"""docs/observability.md and the code say the same."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from esper.nissa.fields import fields_of
from esper.nissa.metrics import Metrics
from esper.simic.dataset import columns
from tests.simic.test_dataset import experience

from .feed import recorded
from .scenario import RUN
from .strategies import KINDS

TEXT = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
ROWS = {row.split("|")[1].strip().strip("`"): row for row in TEXT.splitlines() if row.startswith("| `")}


def words(text):
    return set(re.findall(r"`([a-z0-9_.]+)`", text))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_row_with_all_its_fields(kind):
    written = [fields_of(event) for event in recorded() if event.WhichOneof("event") == kind]
    fields = set().union(*written) - {"kind", "step", "time"}
    assert fields <= words(ROWS[kind]), fields - words(ROWS[kind])


def test_candidates_verdicts_and_arms_have_their_fields():
    written = [fields_of(event) for event in recorded()]
    inner = [c for f in written for c in f.get("candidates", ())] + [f["verdict"] for f in written if "verdict" in f]
    inner += [arm for f in written for arm in f.get("arms", ())] + [f["plan"] for f in written if "plan" in f]
    assert set().union(*inner) <= words(TEXT)


def test_every_metric_has_a_row_and_every_row_a_metric():
    metrics = Metrics()
    metrics.telemetry(RUN)
    exposed = {f.name + ("_total" if f.type == "counter" else "") for f in metrics.registry.collect()}
    described = {name for row in ROWS.values() for name in words(row.split("|")[1]) if name.startswith("esper_")}
    assert exposed == described


def test_every_column_of_the_dataset_is_there():
    row = columns(experience(gain=0.1, isolated_gain=0.1))
    assert set(row) <= words(TEXT)


@pytest.mark.parametrize("module", ["esper.nissa", "esper.nissa.sink", "esper.nissa.recorder", "esper.simic.store"])
def test_importing_nissa_and_simic_is_cheap(module):
    program = f"import sys, esper; before = set(sys.modules); import {module}; print(set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "matplotlib", "numpy", "grpc", "nats", "jinja2", "sqlalchemy"):
        assert f"'{heavy}'" not in loaded
