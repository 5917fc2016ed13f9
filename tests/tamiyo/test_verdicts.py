"""Keep or cull: the rule at its boundaries, the controls, and the rounds in whatever order they come."""

import math

import pytest

from esper.api.common.v1 import training_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.api.tolaria.v1 import state_pb2
from esper.kasmina.lifecycle import State
from esper.tamiyo.memory import load

from .scenes import answer, commands, kinds, measured, memory, only, packet, seeds, tracked, verdict


def judged(losses, state="EVALUATING", **options):
    """The answer to one verdict on fc1/0."""
    changes = options.pop("changes", {})
    return answer(packet(seeds=seeds(fc1_0=state), results=[verdict(losses, **options)], **changes))


def moves(response):
    """Where the seed goes: states of Advance, or CULLED."""
    return [State(c.advance.to).name if c.WhichOneof("action") == "advance" else "CULLED" for c in commands(response)]


def above(value, by=1e-9):
    return value + by


@pytest.mark.parametrize(
    "gain, standard_errors, kept",
    [
        (0.01, 5.0, False),  # exactly 1 % is not above 1 %
        (above(0.01), 5.0, True),
        (0.05, 1.0, False),  # exactly 1 standard error is not above 1
        (0.05, above(1.0), True),
        (0.05, 0.5, False),
        (0.0099, 100.0, False),
        (0.0, 5.0, False),
        (-0.2, 9.0, False),
        (math.nan, 5.0, False),
        (math.inf, 5.0, False),
    ],
)
def test_a_graft_stays_for_more_than_one_percent_and_more_than_one_standard_error(gain, standard_errors, kept):
    response = judged(measured(gain, standard_errors))
    decision = only(response)
    assert decision.verdict.keep is kept
    assert moves(response) == (["FINE_TUNING"] if kept else ["CULLED"])
    assert decision.kind == (pb.DECISION_KIND_MODIFY if kept else pb.DECISION_KIND_REMOVE_SEED)
    assert decision.plan.steps and decision.plan.preconditions and decision.plan.undo


def test_a_difference_without_any_spread_is_as_sure_as_can_be():
    exact = training_pb2.PairedMeasurement(pairs=250, mean=0.9, control_mean=1.0, difference_standard_error=0.0)
    assert moves(judged(exact)) == ["FINE_TUNING"]


def test_the_rule_is_the_runs_own():
    strict = {"changes": {"settings": {"min_gain": 0.2, "min_standard_errors": 3.0}}}
    assert moves(judged(measured(0.2, 5.0), **strict)) == ["CULLED"]
    assert moves(judged(measured(0.21, 5.0), **strict)) == ["FINE_TUNING"]
    assert moves(judged(measured(0.21, 2.9), **strict)) == ["CULLED"]


def test_a_verdict_carries_every_number_it_rests_on():
    decision = only(judged(measured(0.05, 3.0)))
    said = decision.verdict
    assert (said.seed.site, said.seed.slot, said.round, said.confounded) == ("fc1", 0, 1, False)
    assert said.gain == pytest.approx(0.05)
    assert said.standard_error == pytest.approx(0.05 / 3)
    assert said.measurement == measured(0.05, 3.0)
    assert said.control == training_pb2.CONTROL_TWIN
    assert said.false_keep_rate == pytest.approx(0.1587, abs=1e-4)
    assert said.reason == decision.reason
    assert decision.reason == (
        "verdict 1 on title-1 at fc1/0 against its twin: held-out gain +5.00% ± 1.67% over 250 examples "
        "(limits 1.0% and 1 standard errors)"
    )
    assert decision.confidence == pytest.approx(0.9918, abs=1e-4)  # 4 % above 1 %, at 1.67 %


@pytest.mark.parametrize("gain, kept", [(0.02, False), (0.2, False), (above(0.2), True)])
def test_ablation_flatters_the_graft_so_it_must_show_more(gain, kept):
    response = judged(measured(gain), control="ablation")
    assert only(response).verdict.control == training_pb2.CONTROL_ABLATION
    assert only(response).verdict.keep is kept
    assert "against its ablation" in only(response).reason


def test_a_stricter_rule_holds_for_ablation_too():
    strict = {"changes": {"settings": {"min_gain": 0.4}}}
    assert moves(judged(measured(0.3), control="ablation", **strict)) == ["CULLED"]


def test_what_ablation_must_show_is_a_setting():
    mild = {"changes": {"settings": {"ablation_min_gain": 0.02}}}
    assert only(judged(measured(0.05), control="ablation", **mild)).verdict.keep
    assert only(judged(measured(0.05), control="twin")).verdict.keep  # which needs no more than `min_gain`


def test_what_could_not_be_measured_is_not_kept():
    response = judged(None, failure="the worker was killed")
    assert moves(response) == ["CULLED"]
    assert only(response).reason == "the verdict on fc1/0 could not be measured: the worker was killed"
    assert not only(response).HasField("verdict")


def test_a_cull_goes_on_from_the_twin_and_masks_the_kernel_for_a_while():
    response = judged(measured(-0.1))
    (command,) = commands(response)
    assert command.cull.return_to_twin
    kept = load(response.controller_state)
    (until,) = kept.masked.values()
    assert until == 1000 + 2 * 700
    assert kept.fruitless_events == 1
    assert only(response).plan.cooldown_steps == 1400


def test_the_second_verdict_makes_a_fossil_and_ends_the_run_of_fruitless_events():
    first = judged(measured(0.1), changes={"controller_state": memory(fruitless_events=3)})
    assert load(first.controller_state).fruitless_events == 3
    changes = {"controller_state": first.controller_state}
    second = judged(measured(0.1), state="FINE_TUNING", round=2, changes=changes)
    assert moves(second) == ["FOSSILIZED"]
    assert load(second.controller_state).fruitless_events == 0


def test_the_second_verdict_may_cull_what_the_first_kept():
    first = judged(measured(0.1))
    changes = {"controller_state": first.controller_state}
    assert moves(judged(measured(0.0), state="FINE_TUNING", round=2, changes=changes)) == ["CULLED"]


def test_a_second_verdict_that_overtakes_the_first_waits_for_it():
    early = judged(measured(0.1), round=2)
    assert moves(early) == ["FINE_TUNING"]
    changes = {"controller_state": early.controller_state}
    assert moves(judged(measured(0.1), state="FINE_TUNING", round=1, changes=changes)) == ["FOSSILIZED"]


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
@pytest.mark.parametrize(
    "gains, expected",
    [
        ({1: 0.1, 2: 0.1}, ["FINE_TUNING", "FOSSILIZED"]),
        ({1: 0.1, 2: -0.1}, ["FINE_TUNING", "CULLED"]),
        ({1: -0.1, 2: 0.1}, ["CULLED"]),
        ({1: -0.1, 2: -0.1}, ["CULLED"]),
    ],
)
def test_both_verdicts_in_one_packet_are_taken_in_their_order(order, gains, expected):
    results = [verdict(measured(gains[number]), round=number) for number in order]
    assert moves(answer(packet(seeds=seeds(fc1_0="EVALUATING"), results=results))) == expected


def test_a_verdict_whose_advance_is_still_on_its_way_makes_no_detour():
    first = judged(measured(0.1))
    # the packet was written before the command of the first answer took effect
    changes = {"controller_state": first.controller_state}
    assert moves(judged(measured(0.1), round=2, changes=changes)) == ["FINE_TUNING", "FOSSILIZED"]


def test_a_verdict_that_comes_twice_counts_once():
    first = judged(measured(0.1))
    changes = {"controller_state": first.controller_state}
    again = judged(measured(0.1), state="FINE_TUNING", round=1, changes=changes)
    assert not commands(again)
    assert "round 1 was passed before" in only(again).reason


def test_what_a_former_life_of_the_seed_passed_does_not_count():
    former = memory(passed={"fc1/0 event-0": [1]})
    assert moves(judged(measured(0.1), round=2, changes={"controller_state": former})) == ["FINE_TUNING"]
    assert load(judged(measured(0.1), changes={"controller_state": former}).controller_state).passed == {
        "fc1/0 event-1": [1]
    }


@pytest.mark.parametrize("state", ["DORMANT", "TRAINING", "FOSSILIZED", "CULLED", "ROLLED_BACK"])
def test_a_verdict_on_a_seed_that_is_not_on_trial_is_passed_over(state):
    assert "advance" not in kinds(judged(measured(0.1), state=state))
    assert "cull" not in kinds(judged(measured(-0.1), state=state))


@pytest.mark.parametrize("state", ["GRAFTING", "STABILIZATION"])
def test_a_graft_that_is_not_at_full_weight_is_not_judged(state):
    response = judged(measured(0.5), state=state)
    assert not commands(response)
    assert only(response).reason == f"verdict 1 on fc1/0 is not acted on: the seed is {state}"


def test_another_graft_on_trial_marks_the_verdict_confounded():
    states = seeds(fc1_0="EVALUATING", fc2_0="GRAFTING")
    kept = memory(tracked=[tracked("fc1", 0)])
    response = answer(packet(seeds=states, results=[verdict(measured(0.1))], controller_state=kept))
    assert only(response).verdict.confounded
    assert load(response.controller_state).tracked[0].confounded


def test_a_pause_does_not_stop_verdicts():
    assert moves(judged(measured(-0.1), changes={"paused": True})) == ["CULLED"]


@pytest.mark.parametrize("state, to", [("EVALUATING", "FINE_TUNING"), ("FINE_TUNING", "FOSSILIZED")])
def test_a_policy_without_verdicts_keeps_what_it_inserted(state, to):
    response = answer(packet("plateau", seeds=seeds(fc1_0=state), results=[verdict(measured(-0.5))]))
    assert moves(response) == [to]
    plan = only(response).plan
    assert plan.steps and plan.preconditions and plan.undo and plan.cooldown_steps


def test_what_the_governor_did_is_on_record():
    rollback = state_pb2.Rollback(step=990, restored_step=800, reason="loss is nan", locked_seeds=["fc1/0"])
    response = answer(packet(rollbacks=[rollback]))
    assert only(response).reason == "the governor went back to step 800: loss is nan; locked fc1/0"
    assert only(response).urgency == 1
    calm = answer(packet(rollbacks=[state_pb2.Rollback(step=990, restored_step=800, reason="loss is nan")]))
    assert only(calm).reason.endswith("no seed was on trial")
