"""An empty store."""

import pytest

from esper.simic.store import ReplayStore

from .reports import at_noon


@pytest.fixture
def store(tmp_path):
    made = ReplayStore(tmp_path / "simic.sqlite", at_noon)
    yield made
    made.close()
