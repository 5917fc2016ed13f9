"""Which pipeline a design gets: by its value, what waits, the time left, and what failed before."""

import pytest

from esper.tezzeret.pick import Load, Pipelines, pick_pipeline

IDLE = Load(queued=0, workers=2)
ALL = Pipelines({"fast": 0.1, "standard": 4.0, "aggressive": 50.0}, {})


@pytest.mark.parametrize(
    ("value", "load", "deadline_s", "picked", "why"),
    [
        (1.0, IDLE, 600, "aggressive", "it is the dearest there is"),
        (0.5, IDLE, 600, "standard", "aggressive: the design's value is 0.5, and it takes 0.8"),
        (0.0, IDLE, 600, "fast", "aggressive: the design's value is 0"),
        (1.0, IDLE, 10, "standard", "aggressive: it takes 50 s after 0 s of waiting, and 10 s are left"),
        (1.0, IDLE, 1, "fast", "aggressive: it takes 50 s"),
        (1.0, Load(4, 2), 600, "standard", "aggressive: 4 orders wait, and 50 s for each would be over 30 s"),
        (1.0, Load(100, 2), 600, "fast", "aggressive: 100 orders wait"),
        (1.0, Load(0, 0), 600, "aggressive", "dearest"),
    ],
)
def test_the_dearest_that_can_be_afforded(value, load, deadline_s, picked, why):
    name, reason = pick_pipeline(load, value, deadline_s, ALL)
    assert name == picked
    assert why in reason


def test_one_failing_pipeline_leaves_the_others_usable():
    failed = {"standard": "its kernels spill registers", "aggressive": "not built"}
    assert pick_pipeline(IDLE, 1.0, 600, Pipelines(ALL.seconds, failed)) == ("fast", "aggressive: not built")
    only_fast = Pipelines(ALL.seconds, {"fast": "TorchScript is gone"})
    assert pick_pipeline(IDLE, 0.4, 600, only_fast)[0] == "standard"
    assert pick_pipeline(IDLE, 1.0, 600, Pipelines(ALL.seconds, dict.fromkeys(ALL.seconds, "gone"))) == (
        None,
        "aggressive: gone",
    )


def test_a_pipeline_nobody_has_measured_is_not_risked():
    name, reason = pick_pipeline(IDLE, 1.0, 600, Pipelines({"fast": 0.1, "standard": 4.0}, {}))
    assert (name, reason) == ("standard", "aggressive: nobody has measured how long it takes")
