"""`esper serve urabrask --unsafe-no-jail` is for the evaluator alone."""

import pytest

from esper.errors import InvalidConfig
from esper.runtime.serve import ServeOptions

BROKER = "nats://token@127.0.0.1:4222"


def test_an_evaluator_alone_may_run_without_isolation():
    assert ServeOptions(components=("urabrask",), broker=BROKER, unsafe_no_jail=True).unsafe_no_jail


@pytest.mark.parametrize("components", [("urza",), ("urza", "urabrask")])
def test_nothing_else_may(components):
    with pytest.raises(InvalidConfig, match="--unsafe-no-jail is for `esper serve urabrask` alone, got it for urza"):
        ServeOptions(components=components, broker=BROKER, unsafe_no_jail=True)
