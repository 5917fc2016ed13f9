"""The nursery on a real task: digits, as the demo trains them."""

import pytest
import torch

from esper.kasmina.nursery.trial import TrialOptions, run_trial
from esper.tolaria.replay import Replay
from esper.tolaria.tasks import named_task
from tests.kasmina.nursery.runs import candidate, host_state, same_host


@pytest.mark.slow
def test_on_digits_a_convolution_is_worth_more_than_a_scale_and_the_host_does_not_notice():
    task = named_task("digits")
    run = Replay(task, site_names=["conv1", "conv2"])
    titles = ("conv3", "normalisation", "low_rank")
    made = [candidate(run, site, slot, title=t) for site in ("conv1", "conv2") for slot, t in enumerate(titles)]
    outcome = run_trial(run, made, TrialOptions(steps=150, measure_every_steps=30, halving_step=60, keep_candidates=3))
    gains = {(c.seed.site, titles[c.seed.slot]): c.gain for c in outcome.curves}
    assert outcome.batched and all(c.failure == "" for c in outcome.curves)
    assert max(gains, key=gains.get)[1] == "conv3" and max(gains.values()) > 0.02
    assert sum(c.stopped_early for c in outcome.curves) == 3
    alone = Replay(task)
    for _ in range(150):
        alone.update(alone.gradients())
    assert same_host(host_state(run) | {"rng": torch.zeros(1)}, host_state(alone) | {"rng": torch.zeros(1)})
