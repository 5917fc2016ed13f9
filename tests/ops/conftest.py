"""Every op test runs with uninitialised memory filled with NaN, so that an output nobody wrote cannot pass."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from hypothesis import HealthCheck, settings

from esper.ops import backends
from tests.requirements import require

settings.register_profile("ops", deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
settings.load_profile("ops")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch fills what it allocates, from Python or from the library, in deterministic mode."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # set in the run that test_triton_interpreted.py starts


@pytest.fixture(scope="session")
def using() -> Callable[[str], AbstractContextManager[None]]:
    """`with using(backend):` runs every op on that backend; the test skips by name where it is absent."""

    @contextmanager
    def use(backend: str) -> Iterator[None]:
        if backend != "auto":
            require(backend, backends.why_not(backend, "cpu"))
        with backends.forced(backend):
            yield

    return use
