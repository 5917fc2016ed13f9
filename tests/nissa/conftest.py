"""Folders and recorders."""

import pytest

from esper.errors import Unavailable
from esper.nissa.metrics import Metrics
from esper.nissa.recorder import Recorder
from esper.oona.broker import find_server
from tests.requirements import require


@pytest.fixture
def run_directory(tmp_path):
    return tmp_path / "runs" / "run-1"


@pytest.fixture
def recorder(tmp_path):
    made = Recorder(tmp_path / "state", Metrics())
    yield made
    made.close()


@pytest.fixture
def nats_server():
    try:
        return find_server()
    except Unavailable as error:
        require("nats-server", str(error))
