"""A runtime of one's own, started once for all tests that leave it as it was."""

from collections.abc import Iterator

import pytest

from esper import errors
from esper.oona.broker import find_server
from tests.runtime.processes import Runtime


@pytest.fixture(scope="session")
def broker_binary() -> None:
    try:
        find_server()
    except errors.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def runtime(broker_binary: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    started = Runtime(tmp_path_factory.mktemp("runtime"))
    yield started
    assert started.stop() == 0, started.text
