"""Trials for tests: what is tried, and whether two curves are the same."""

import pytest

from esper.kasmina.nursery.trial import TrialOptions, run_trial
from tests.kasmina.nursery.runs import candidate, run_of

OPTIONS = TrialOptions(steps=6, measure_every_steps=3)


def tried(task, candidates, options=OPTIONS, **more):
    """(run, outcome) of candidates given as (site, slot, changes)."""
    run = run_of(task, *{site for site, _, _ in candidates})
    return run, run_trial(
        run, [candidate(run, site, slot, **changes) for site, slot, changes in candidates], options, **more
    )


def three(site):
    titles = ("bottleneck_mlp", "low_rank", "wide_mlp")
    return [(site, slot, {"title": title, "weights_seed": 7 + slot}) for slot, title in enumerate(titles)]


def numbers(curve):
    return [(step, p.pairs, p.mean, p.control_mean, p.standard_error) for step, p in curve.points]


def same_curve(first, second, *, exactly=False):
    for a, b in zip(numbers(first), numbers(second), strict=True):
        assert a == (b if exactly else pytest.approx(b, rel=1e-3, abs=1e-5))
    return True
