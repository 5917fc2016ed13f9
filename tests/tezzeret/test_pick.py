"""Which pipeline an order gets that leaves the choice to the forge: by interest, load, and what cannot be had."""

import pytest

from esper.tezzeret.pick import Load, pick_pipeline

IDLE, BUSY = Load(queued=0, busy=0, workers=4), Load(queued=0, busy=2, workers=4)


@pytest.mark.parametrize(
    ("interest", "load", "picked", "why"),
    [
        (0.9, IDLE, "aggressive", "interest 0.90 is over 0.7 and load 0% below 30%"),
        (0.9, Load(0, 1, 4), "aggressive", "load 25% below 30%"),
        (0.9, Load(1, 1, 4), "standard", "load 50% not below 30%"),
        (0.9, BUSY, "standard", "interest 0.90 is over 0.7 and load 50% not below 30%"),
        (0.9, Load(40, 4, 4), "standard", "load 1100%"),
        (0.7, IDLE, "fast", "interest 0.70 is not over 0.7"),
        (0.0, IDLE, "fast", "interest 0.00"),
        (0.9, Load(0, 0, 0), "aggressive", "load 0%"),
    ],
)
def test_interest_is_worth_a_dearer_pipeline_and_low_load_the_dearest(interest, load, picked, why):
    name, reason = pick_pipeline(load, interest, {})
    assert name == picked
    assert why in reason


def test_what_cannot_be_had_is_passed_over_for_the_next_cheaper_and_said():
    failed = {"aggressive": "this release has none", "standard": "its kernels spill registers"}
    name, reason = pick_pipeline(IDLE, 0.9, failed)
    assert name == "fast"
    assert reason.endswith("not aggressive: this release has none; not standard: its kernels spill registers")
    assert pick_pipeline(IDLE, 0.9, {"aggressive": "none"})[0] == "standard"
    assert pick_pipeline(BUSY, 0.9, {"aggressive": "none"}) == pick_pipeline(BUSY, 0.9, {})
    assert pick_pipeline(IDLE, 0.9, {"standard": "broken"})[0] == "aggressive"


def test_something_must_run():
    every = dict.fromkeys(("fast", "standard", "aggressive"), "gone")
    assert pick_pipeline(IDLE, 0.9, every)[0] == "fast"
    assert pick_pipeline(IDLE, 0.1, every)[0] == "fast"
