"""Field reports: how each seed ended, once, with what was known of it."""

import protovalidate
import pytest

from esper.api.common.v1 import training_pb2
from esper.tamiyo.memory import load

from .scenes import (
    answer,
    artifact,
    germinated,
    measured,
    memory,
    packet,
    seed,
    seeds,
    site,
    state_number,
    tracked,
    trial,
    verdict,
)

ENDS = ("FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK")


def told(end, kept=None, **fields):
    """The answer once fc1/0 has come to its end at step 900."""
    ended = seed("fc1", 0, end, **({"state_step": 900, "reason": "so it went"} | fields))
    state = memory(tracked=[kept or tracked("fc1", 0)])
    return answer(packet("never", seeds=[ended, seed("fc1", 1)], controller_state=state))


@pytest.mark.parametrize("end", ENDS)
def test_every_end_is_reported_once(end):
    response = told(end)
    (report,) = response.field_reports
    protovalidate.validate(report)
    assert report.outcome == state_number(end)
    assert (report.seed.site, report.seed.slot, report.artifact_id) == ("fc1", 0, artifact(1))
    assert (report.germinated_step, report.end_step, report.reason) == (500, 900, "so it went")
    assert (report.task_name, report.policy, report.layer_kind) == ("digits", "never", "Linear")
    assert (report.parameter_count, report.host_parameter_count) == (100, 1000)
    again = answer(
        packet("never", seeds=[seed("fc1", 0, end, state_step=900)], controller_state=response.controller_state)
    )
    assert not again.field_reports
    assert not load(again.controller_state).tracked


@pytest.mark.parametrize(
    "state", ["DORMANT", "GERMINATED", "LOADING", "TRAINING", "GRAFTING", "EVALUATING", "FINE_TUNING"]
)
def test_a_life_that_goes_on_is_not_reported(state):
    response = told(state)
    assert not response.field_reports
    assert load(response.controller_state).tracked


@pytest.mark.parametrize(
    "fields", [{"event_id": "event-0"}, {"artifact_id": artifact(2)}, {"state_step": 400}], ids=lambda f: next(iter(f))
)
def test_the_end_of_another_life_of_the_seed_is_not_taken_for_this_ones(fields):
    assert not told("CULLED", **fields).field_reports


def test_the_same_end_is_the_same_report_and_another_end_is_not():
    (report,) = told("CULLED").field_reports
    assert told("CULLED").field_reports[0].report_id == report.report_id
    assert told("CULLED", state_step=901).field_reports[0].report_id != report.report_id


def test_a_seed_that_was_never_tried_or_judged_says_so_by_silence():
    (report,) = told("CANCELLED").field_reports
    assert not report.HasField("isolated_gain")
    assert not report.HasField("gain")
    assert report.control == training_pb2.CONTROL_UNSPECIFIED


def test_gains_come_with_their_curve_and_control():
    kept = tracked(
        "fc1", 0, isolated_steps=[30, 60, 90], isolated_gains=[0.0, 0.1, 0.2], gain=0.05, standard_error=0.01,
        control="ablation", confounded=True,
    )  # fmt: skip
    (report,) = told("FOSSILIZED", kept).field_reports
    assert report.isolated_gain == pytest.approx(0.15)
    assert list(report.isolated_steps) == [30, 60, 90]
    assert (report.gain, report.standard_error, report.confounded) == (0.05, 0.01, True)
    assert report.control == training_pb2.CONTROL_ABLATION


def test_a_whole_life_ends_in_a_report_of_what_was_measured():
    state = answer(packet(sites=[site("fc1", dead_ratio=0.25)], seeds=[seed("fc1", 0)])).controller_state
    (kept,) = load(state).tracked
    carried = {"artifact_id": kept.artifact_id, "event_id": kept.event_id}
    curve = trial({("fc1", 0): [0.02, 0.1]})

    def later(step, state_name, state, results=(), **fields):
        made = seed("fc1", 0, state_name, state_step=step, **carried)
        return answer(packet(step=step, seeds=[made], results=list(results), controller_state=state, **fields))

    state = later(1300, "TRAINING", state, [curve]).controller_state
    state = later(1700, "EVALUATING", state, [verdict(measured(0.08))]).controller_state
    state = later(1800, "FINE_TUNING", state, [verdict(measured(0.06), round=2)]).controller_state
    (report,) = later(1900, "FOSSILIZED", state).field_reports
    assert report.isolated_gain == pytest.approx(0.06)
    assert report.gain == pytest.approx(0.06)
    assert report.germinated_step == 1000
    assert report.title == f"title-{int(kept.artifact_id, 16)}"
    features = dict(report.features)
    assert features["gradient_norm"] == pytest.approx(0.1)
    assert features["dead_ratio"] == 0.25
    assert features["validation_over_train"] == pytest.approx(1.1)
    assert features["step_share"] == pytest.approx(0.1)
    assert features["site_channels"] == 8


def test_features_that_were_not_measured_are_absent():
    state = packet(
        "periodic-random", validation_loss=None, total_steps=0, sites=[site(gradient_norm=None)], seeds=[seed()]
    )
    response = answer(state)
    assert germinated(response)
    (kept,) = load(response.controller_state).tracked
    assert set(kept.features) == {"train_loss", "site_channels", "site_positions", "site_parameters"}


def test_seeds_that_were_not_germinated_by_this_controller_are_not_reported():
    response = answer(packet("never", seeds=seeds(fc1_0="FOSSILIZED")))
    assert not response.field_reports
