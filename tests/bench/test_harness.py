"""What the harness says of arms whose costs are known."""

import random

import pytest
import torch

from bench.harness import BASELINE, CANDIDATE, CONTROL, Comparison, Effort, compare, one_thread
from tests.bench.fakes import FakeClock

EFFORT = Effort(rounds=4, turns=25, block_s=0.01, most_calls=64)


def measured(ratio, *, spread=0.0, effort=EFFORT, control=1.0):
    clock = FakeClock(random.Random(7), spread)
    arms = {BASELINE: clock.arm(0.001), CONTROL: clock.arm(0.001 * control), CANDIDATE: clock.arm(0.001 * ratio)}
    return compare(lambda: arms, effort, clock)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.01, 3.0])
def test_a_known_ratio_is_recovered(ratio):
    assert measured(ratio).ratio() == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("ratio", [0.8, 1.02, 1.5])
def test_a_known_ratio_is_recovered_through_noise(ratio):
    found = measured(ratio, spread=0.3)
    assert found.ratio() == pytest.approx(ratio, rel=0.05)
    low, high = found.interval(CANDIDATE)
    assert low < ratio < high


def test_the_control_of_equal_arms_covers_one_and_is_no_wider_than_the_noise():
    low, high = measured(1.5, spread=0.2).interval()
    assert 0.95 < low < 1 < high < 1.05


def test_without_noise_the_control_is_exactly_one():
    assert measured(2.0).interval() == pytest.approx((1.0, 1.0))


def test_a_control_that_differs_shows_in_the_interval():
    low, _ = measured(1.0, control=1.2, spread=0.01).interval()
    assert low > 1.15


def test_an_interval_narrows_with_turns():
    few, many = (measured(1.0, spread=0.3, effort=Effort(4, turns, 0.01, 64)).interval() for turns in (5, 100))
    assert many[1] - many[0] < few[1] - few[0]


def test_rounds_that_disagree_widen_the_interval():
    """Luck of placement stays for a round, so that turns of one round are not independent."""
    agreeing = Comparison([[{BASELINE: 1.0, CONTROL: c} for c in (0.96, 1.0, 1.04)] for _ in range(6)])
    disagreeing = Comparison([[{BASELINE: 1.0, CONTROL: c}] * 3 for c in (0.96, 1.0, 1.04) * 2])
    widths = [found.interval()[1] - found.interval()[0] for found in (agreeing, disagreeing)]
    assert widths[1] >= widths[0]


def test_one_disturbed_turn_does_not_move_the_ratio():
    turns = [{BASELINE: 1.0, CANDIDATE: 1.1}] * 9 + [{BASELINE: 1.0, CANDIDATE: 50.0}]
    assert Comparison([turns]).ratio() == pytest.approx(1.1)


def test_what_slows_the_whole_machine_for_a_while_cancels_out():
    turns = [{BASELINE: slow, CANDIDATE: 1.25 * slow} for slow in (1.0, 1.0, 7.0, 7.0, 7.0)]
    assert Comparison([turns]).ratio() == pytest.approx(1.25)


def test_arms_are_built_once_a_round_and_timed_once_a_turn_in_changing_order():
    clock, built, called = FakeClock(), [], []

    def build():
        built.append(True)

        def arm(name):
            cost = clock.arm(1.0)

            def call():
                called.append(name)
                cost()

            return call

        return {name: arm(name) for name in (BASELINE, CONTROL, CANDIDATE)}

    compare(build, Effort(rounds=3, turns=20, block_s=0.0), clock)
    assert len(built) == 3
    assert all(called.count(name) >= 3 * 20 for name in (BASELINE, CONTROL, CANDIDATE))
    last = called[-3 * 20 :]
    orders = {tuple(last[i : i + 3]) for i in range(0, len(last), 3)}
    assert all(sorted(order) == sorted({BASELINE, CONTROL, CANDIDATE}) for order in orders)
    assert len(orders) > 1


def test_a_block_is_long_enough():
    clock, calls = FakeClock(), []

    def arm():
        calls.append(1)
        clock.now += 0.001

    compare(lambda: {BASELINE: arm, CONTROL: arm}, Effort(rounds=1, turns=1, block_s=0.01), clock)
    first_blocks = 3 + 3 + 1 + 2 + 4 + 8 + 16  # warm-up of two arms, then doubling until 10 ms are full
    assert len(calls) == first_blocks + 2 * 16


def test_torch_has_one_thread_while_timing_and_its_own_number_again_afterwards():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        watch = lambda: seen.append(torch.get_num_threads())  # noqa: E731
        compare(lambda: {BASELINE: watch, CONTROL: watch}, Effort(rounds=1, turns=1, block_s=0.0))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), one_thread():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
