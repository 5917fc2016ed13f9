"""One thread and one start for every test; hypothesis without a deadline, as torch's first call takes a second."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
torch.set_num_threads(1)  # here and not in a fixture, as runs are made in those of modules too


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)
