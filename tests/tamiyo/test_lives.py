"""Whole runs: every move is legal, nothing gets stuck, every life ends in one report, and budgets hold to the end."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.kasmina.lifecycle import State
from esper.tamiyo.policies import POLICIES

from .toy import EVERY, ToyRun

GROWING = sorted(set(POLICIES) - {"never"})
OPEN = {State.GERMINATED, State.LOADING, State.TRAINING, *(State.GRAFTING, State.STABILIZATION)}
LONGEST = 400 + 100 + 5 * EVERY  # a verdict, its repetition, and the latest answers


def live_on(run: ToyRun, decisions: int) -> Counter[str]:
    """Let the run pass so many decision points; returns how its seeds ended."""
    for _ in range(decisions):
        run.decide()
        for seed in run.seeds.values():
            under_way = seed.state in OPEN or seed.state in (State.EVALUATING, State.FINE_TUNING)
            assert not under_way or run.step - seed.state_step <= LONGEST, f"{seed} is stuck at {run.step}"
    return Counter(outcome for _, _, outcome in run.lives)


@settings(max_examples=60)
@given(st.sampled_from(GROWING), st.integers(0, 10_000), st.integers(0, 4), st.sampled_from([0.0, 0.3, 1.0]))
def test_no_seed_gets_stuck_and_every_end_is_reported_once(policy, random_seed, late, quality):
    run = ToyRun(policy, random.Random(random_seed), late=late, quality=quality)
    live_on(run, 60)
    run.decide()  # tells what ended at the last one
    told = [(f"{r.seed.site}/{r.seed.slot}", r.end_step) for r in run.reports]
    ended = [(seed, step) for seed, step, _ in run.lives if step < run.step]
    assert sorted(told) == sorted(ended)
    assert len({r.report_id for r in run.reports}) == len(run.reports)


@pytest.mark.parametrize("policy", ["heuristic", "bandit"])
def test_useful_grafts_become_fossils_and_useless_ones_go(policy):
    good = live_on(ToyRun(policy, random.Random(1), quality=1.0), 120)
    assert good["FOSSILIZED"] >= 2
    bad = live_on(ToyRun(policy, random.Random(1), quality=0.0), 120)
    assert not bad["FOSSILIZED"]
    assert bad["CULLED"] >= 4


@pytest.mark.parametrize("policy", ["periodic-random", "largest-on-schedule", "task-prior", "plateau"])
def test_a_policy_without_verdicts_keeps_all_it_inserts(policy):
    ends = live_on(ToyRun(policy, random.Random(1), quality=0.0), 60)
    assert ends["FOSSILIZED"] >= 2
    assert set(ends) == {"FOSSILIZED"}


def test_the_control_never_grows():
    run = ToyRun("never", random.Random(1))
    live_on(run, 40)
    assert run.events == 0
    assert not run.lives


@pytest.mark.parametrize("policy", GROWING)
def test_the_budgets_hold_to_the_end(policy):
    run = ToyRun(policy, random.Random(3), quality=1.0, budget={"max_added_parameters": 350, "max_events": 4})
    live_on(run, 120)
    assert run.parameters <= 1350
    assert 1 <= run.events <= 4


def test_events_that_keep_nothing_come_ever_rarer():
    run = ToyRun("heuristic", random.Random(1), quality=0.0)
    began = []
    for _ in range(150):
        before = run.events
        run.decide()
        began += [run.step] * (run.events - before)
    gaps = [b - a for a, b in itertools.pairwise(began)]
    assert gaps == [1400, 2800, 5600]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_two_runs_of_one_seed_decide_alike(policy):
    def story(random_seed):
        run = ToyRun(policy, random.Random(random_seed))
        return [run.decide() for _ in range(40)]

    assert story(5) == story(5)
