"""One process to evaluate in, for all tests here."""

from collections.abc import Iterator

import pytest

from .lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()
