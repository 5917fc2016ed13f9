"""What every test may ask for."""

from pathlib import Path

import pytest

from esper import errors
from tests.requirements import require


@pytest.fixture(scope="session")
def nats_server() -> Path:
    """The broker's binary; the test is skipped, saying why, where there is none."""
    from esper.oona.broker import find_server  # here: a machine that is lent for its GPU has no bus

    try:
        return find_server()
    except errors.Unavailable as error:
        require("nats-server", str(error))
