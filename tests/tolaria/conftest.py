"""One thread and one start for every test; hypothesis without a deadline, as torch's first call takes a second."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.tolaria.told import Told

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
torch.set_num_threads(1)  # here and not in a fixture, as runs are made in those of modules too


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A long run and all the places at which it could have been dropped: made once, as it takes seconds."""
    return Told(tmp_path_factory.mktemp("told"))
