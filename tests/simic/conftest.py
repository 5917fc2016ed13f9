"""An empty store."""

import pytest

from esper.errors import Unavailable
from esper.oona.broker import find_server
from esper.simic.store import ReplayStore
from tests.requirements import require

from .reports import at_noon


@pytest.fixture
def store(tmp_path):
    made = ReplayStore(tmp_path / "simic.sqlite", at_noon)
    yield made
    made.close()


@pytest.fixture
def nats_server():
    try:
        return find_server()
    except Unavailable as error:
        require("nats-server", str(error))
