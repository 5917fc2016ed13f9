"""A kernel that lost several seeds is known by that, and a seed answers for its own kernel only."""

import pytest

from esper.kasmina.breaker import MAX_FAULTS, MAX_LOST, Breaker
from esper.kasmina.lifecycle import State
from tests import builders
from tests.builders import ARTIFACT
from tests.kasmina.prepared import prepared


def fault(executor, seed, times):
    executor.grafts[seed].use_form(lambda h, *_: h * float("nan"))
    for _ in range(times):
        executor.model(builders.rows())
        for faulty, _ in executor.take_faults():
            executor.charge(faulty)


def test_it_opens_for_the_kernel_that_lost_too_many_seeds_and_no_other():
    breaker = Breaker()
    for _ in range(MAX_LOST - 1):
        breaker.count(ARTIFACT)
    assert not breaker.why_open(ARTIFACT)
    breaker.count(ARTIFACT)
    assert f"kernel {ARTIFACT[:12]} lost {MAX_LOST} seeds" in breaker.why_open(ARTIFACT)
    assert not breaker.why_open("b" * 64)


@pytest.mark.parametrize(("faults", "lost"), [(0, 0), (MAX_FAULTS - 1, 0), (MAX_FAULTS, 1)])
def test_a_seed_is_lost_to_its_kernel_if_it_is_culled_with_all_its_faults(faults, lost):
    executor, optimizer, seed = prepared(State.STABILIZATION)
    fault(executor, seed, faults)
    executor.cull(seed, optimizer, 30, "test")
    assert executor.breaker.lost[ARTIFACT] == lost


def test_a_fossil_that_is_removed_is_not_its_kernel_s_failure():
    executor, optimizer, seed = prepared(State.STABILIZATION)
    fault(executor, seed, MAX_FAULTS)
    for state in (State.EVALUATING, State.FINE_TUNING):
        executor.advance(seed, state, 30, "test")
    executor.fossilise(seed, optimizer, 31, "test", freeze=True)
    executor.cull(seed, optimizer, 32, "test")
    assert not executor.breaker.lost


def test_a_new_kernel_does_not_answer_for_the_faults_of_the_one_before():
    executor, optimizer, seed = prepared(State.STABILIZATION)
    fault(executor, seed, MAX_FAULTS)
    executor.cull(seed, optimizer, 30, "test")
    executor.end_embargoes(30 + executor.embargo_steps)
    builders.lead(executor, State.STABILIZATION, optimizer, seed=seed, step=400)
    assert executor.table[seed].errors == 0
    assert executor.table.layout.error_counts.tolist() == [0, 0]
