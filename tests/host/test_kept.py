"""Running a model and leaving no trace."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from esper.host.kept import kept_buffers, kept_generators, kept_modes


class Counts(nn.Module):
    """One buffer written in place, one replaced, one that is absent."""

    def __init__(self):
        super().__init__()
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("absent", None)
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self):
        self.written += 1
        self.replaced = self.replaced + 1


def test_buffers_come_back_as_the_same_tensors():
    model = nn.Sequential(Counts())
    before = dict(model[0]._buffers)
    with kept_buffers(model):
        model[0]()
        assert model[0].written.any() and model[0].replaced.any()
    assert all(model[0]._buffers[name] is value for name, value in before.items())
    assert not model[0].written.any() and not model[0].replaced.any()


@pytest.mark.parametrize("raises", [False, True])
def test_generators_come_back(raises):
    def state():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    model = nn.Linear(1, 1)
    before = state()
    try:
        with kept_generators(model):
            drawn = torch.rand(1).item(), random.random(), np.random.rand()
            if raises:
                raise ValueError
    except ValueError:
        pass
    assert state() == before
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == drawn


def test_buffers_come_back_after_an_error():
    model = Counts()
    with pytest.raises(ZeroDivisionError), kept_buffers(model):
        model()
        raise ZeroDivisionError
    assert not model.written.any()


def test_each_module_is_in_its_own_mode_again():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), kept_modes(model):
        model.eval()
        model[1].train()
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
