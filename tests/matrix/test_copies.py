"""What a copy of a growing model knows, and what it does not."""

import copy

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from esper.kasmina.lifecycle import State
from tests import builders


def averaging(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0))  # of decay 0: it follows at once


def test_alpha_does_not_ramp_in_a_copy():
    executor = builders.executor()
    builders.lead(executor, State.GRAFTING)
    copied, x = copy.deepcopy(executor.model), builders.rows()
    before = executor.model(x)
    executor.step_ramps(100)
    assert not torch.allclose(executor.model(x), before)
    assert torch.equal(copied(x), before)


def test_an_average_from_before_a_seed_came_in_takes_the_wrong_parameters_and_one_made_again_the_right_ones():
    executor = builders.executor()
    model, optimizer, x = executor.model, builders.adam(executor.model), builders.rows()
    stale = averaging(model)
    stale.update_parameters(model)
    seed = builders.lead(executor, State.STABILIZATION, optimizer)
    stale.update_parameters(model)
    stale.update_parameters(model)
    graft = executor.grafts[seed]
    assert torch.equal(stale.module[4].weight, graft.body.expand_weight)  # the head, by its place in the list
    again = averaging(model)
    for _ in range(2):
        builders.train(model, optimizer, [x])
        again.update_parameters(model)
    assert torch.equal(again(x), model(x))
