"""Folders and recorders."""

import pytest

from esper.nissa.metrics import Metrics
from esper.nissa.recorder import Recorder


@pytest.fixture
def run_directory(tmp_path):
    return tmp_path / "runs" / "run-1"


@pytest.fixture
def recorder(tmp_path):
    made = Recorder(tmp_path / "state", Metrics())
    yield made
    made.close()
