"""The record of a run: curves without what was undone, culls with what was measured of them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tolaria.v1 import state_pb2
from esper.nissa.lineage import lineage_of
from esper.nissa.page import page_of
from esper.nissa.summary import record_of

from .feed import recorded
from .scenario import RUN, hello, moved, progress, report
from .strategies import events


@pytest.fixture
def record():
    return record_of(RUN, recorded("/runs/1"))


def test_the_scenarios_record(record):
    assert record.position == len(recorded())
    assert record.hello.random_seed == 7
    assert record.goodbye.completed
    assert record.summary.nursery_flops == 2e12
    assert record.step == 1000
    assert record.unchanging_decisions == 3
    assert [decision.step for decision in record.decisions] == [200, 400, 700]
    assert [outcome.command_id for outcome in record.refused] == ["manual-1"]
    assert record.validations["never-grown"] == [(500, 0.8)]


def test_losses_have_their_steps_and_rollbacks_take_back_what_they_undid():
    made = [
        pb.RunEvent(progress=progress(100, 1.0)),
        pb.RunEvent(validation={"step": 90, "loss": 1.2, "arm": "run"}),
        pb.RunEvent(validation={"step": 90, "loss": 1.3, "arm": "never-grown"}),
        pb.RunEvent(progress=progress(200, 9.0, {"fc1/0": 0.5})),
        pb.RunEvent(validation={"step": 190, "loss": 9.2, "arm": "run"}),
        pb.RunEvent(rollback=state_pb2.Rollback(step=200, restored_step=100)),
        pb.RunEvent(progress=progress(150, 0.9)),
    ]
    record = record_of(RUN, made)
    assert [step for step, _ in record.train] == [98, 99, 148, 149]
    assert record.validations == {"run": [(90, 1.2)], "never-grown": [(90, 1.3)]}
    assert record.alphas == {"fc1/0": []}
    assert [step for step, _ in record.parameters] == [100, 150]


def test_progress_without_single_losses_gives_its_mean():
    said = progress(100, 0.7)
    del said.losses[:]
    assert record_of(RUN, [pb.RunEvent(progress=said)]).train == [(100, 0.7)]


def test_a_cull_has_the_report_on_that_seed_and_no_other():
    made = [
        pb.RunEvent(transition=moved("GRAFTING", "CULLED", 300, reason="gain below 1 %")),
        pb.RunEvent(transition=moved("CULLED", "DORMANT", 400)),
        pb.RunEvent(transition=moved("GRAFTING", "CULLED", 900, reason="again")),
        pb.RunEvent(field_report=report(900, "CULLED", gain=-0.02)),
    ]
    made[3].field_report.germinated_step = 500
    first, second = record_of(RUN, made).culls()
    assert (first.step, first.reason, first.report) == (300, "gain below 1 %", None)
    assert (second.step, second.report.gain) == (900, -0.02)


def test_a_run_that_is_resumed_is_not_over():
    made = [
        pb.RunEvent(hello=hello()),
        pb.RunEvent(goodbye={"step": 5, "error": "no"}),
        pb.RunEvent(hello=hello()),
    ]
    assert record_of(RUN, made).goodbye is None


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None, max_examples=80)
@given(st.lists(events(), max_size=5))
def test_any_events_give_a_record_and_a_page(made):
    record = record_of(RUN, made)
    assert record.lineage.write({}) == lineage_of(RUN, made).write({})
    page = page_of(record, {})
    assert len(page.decisions) == len(record.decisions)
