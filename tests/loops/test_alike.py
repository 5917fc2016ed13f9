"""A trainer whose parts a task would not make."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from esper.errors import InvalidConfig
from esper.loops.alike import refuse_unlike
from esper.tolaria.step import build_parts
from tests.loops import tasks


def test_what_the_task_makes_is_alike_whatever_its_weights_and_learning_rate():
    task = tasks.regression()
    parts = build_parts(replace(task, seed=5))
    parts.optimizer.param_groups[0]["lr"] = 5.0
    refuse_unlike(task, parts)


def test_each_difference_is_named():
    task = tasks.regression()
    parts = build_parts(task)
    wider = nn.Sequential(*parts.model, nn.Linear(3, 3))
    adam, schedule = torch.optim.Adam, parts.scheduler
    two_groups = adam([{"params": list(parts.model[0].parameters())}, {"params": list(parts.model[2:].parameters())}])
    strangers = adam([*parts.model.parameters(), *wider[-1].parameters()])
    differences = {
        r"model: 6.bias \[3\] here": replaced(parts, model=wider),
        "optimiser: SGD here, and Adam as task 'regression'": replaced(
            parts, optimizer=torch.optim.SGD(parts.model.parameters())
        ),
        "parameter groups: group 0 of 0.bias, 0.weight here": replaced(parts, optimizer=two_groups),
        "parameter groups: group 0 of .*a parameter not of the model": replaced(parts, optimizer=strangers),
        "scheduler: none here, and CosineAnnealingLR": replaced(parts, scheduler=None),
    }
    assert schedule is not None
    for message, unlike in differences.items():
        with pytest.raises(InvalidConfig, match=message):
            refuse_unlike(task, unlike)


def replaced(parts, **changes):
    return replace(parts, **changes)
