"""Two trainers on one broker: each comes to what it comes to alone, and hears nothing of the other's."""

import pytest

from tests.flow.conftest import Calm
from tests.flow.drills import GROWING, begin, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_two_trainers_on_one_broker_never_hear_each_other(calm: Calm, runtime, tmp_path):
    first = begin(runtime, tmp_path / "runs", "drill", **GROWING)
    second = begin(runtime, tmp_path / "runs", "drill-2", seed=1, **GROWING)
    first.finish()
    second.finish()
    assert outcome(first) == calm.outcome
    assert outcome(second) != calm.outcome
    for run_id, training in (("drill", first), ("drill-2", second)):
        decided = training.events("decision")
        assert decided and {e["decision_id"].split("/")[0] for e in decided} == {run_id}
        said = {str(e.get("command_id", run_id)).split("/")[0] for e in training.events("outcome")}
        assert said <= {run_id}
        assert len(training.events("hello")) == len(training.events("goodbye")) == 1
        assert len({e["decision_id"] for e in decided}) == len(decided)
        assert all(entry.get("runId", run_id) == run_id for entry in training.journal())
