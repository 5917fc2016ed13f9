"""What becomes of candidates once the nursery has tried them."""

import pytest

from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.tamiyo.memory import load

from .scenes import answer, artifact, commands, kinds, memory, only, packet, seed, seeds, tracked, trial

FC1, FC1B, FC2, FC2B = ("fc1", 0), ("fc1", 1), ("fc2", 0), ("fc2", 1)
NAN = float("nan")


def tried(gains, policy="heuristic", failed=None, **changes):
    """The answer to a trial of all the seeds, those of `gains` being TRAINING."""
    states = {f"{name}_{slot}": "TRAINING" for name, slot in gains}
    result = trial(gains, **(failed or {}))
    made = {"seeds": seeds(**states), "results": [result]} | changes
    return answer(packet(policy, **made))


def fates(response):
    """What became of each seed, in the order of commands."""
    found = []
    for command in commands(response):
        kind = command.WhichOneof("action")
        action = getattr(command, kind)
        found.append((action.seed.site, action.seed.slot, kind))
    return found


def test_a_last_reading_that_the_one_before_outweighs_is_no_gain_and_the_reason_says_so():
    response = tried({FC1: [-0.3, 0.1]})
    assert fates(response) == [("fc1", 0, "cull")]
    assert ", but -10.00% in the mean of its last two readings" in only(response).candidates[0].reason


def test_the_best_gain_is_inserted_last_and_the_others_are_given_up():
    response = tried({FC1: [0.0, 0.05], FC1B: [0.0, 0.2], FC2: [0.0, 0.1], FC2B: [0.0, -0.1]})
    assert fates(response) == [
        ("fc2", 0, "cancel"),
        ("fc1", 0, "cancel"),
        ("fc2", 1, "cull"),
        ("fc1", 1, "insert"),
    ]
    decision = only(response)
    assert decision.kind == pb.DECISION_KIND_MODIFY
    assert decision.reason == "event-1: title-1 at fc1/1 has the best isolated gain of 4, +10.00%"
    insert = decision.plan.commands[-1]
    assert (insert.insert.ramp_steps, insert.insert.event_id) == (30, "event-1")
    assert len(decision.plan.steps) == 4
    assert decision.plan.cooldown_steps == 700
    assert decision.confidence > 0.99


def test_candidates_are_listed_best_first_with_their_gains_and_fates():
    response = tried({FC1: [0.0, 0.05], FC1B: [0.0, 0.2], FC2: [0.0, -0.1]})
    listed = [(c.seed.site, c.seed.slot, c.chosen, round(c.isolated_gain, 4)) for c in only(response).candidates]
    assert listed == [("fc1", 1, True, 0.1), ("fc1", 0, False, 0.025), ("fc2", 0, False, -0.05)]
    assert all(c.reason and c.artifact_id == artifact(1) for c in only(response).candidates)


def test_the_mean_of_the_last_two_readings_ranks_and_the_last_one_decides():
    assert fates(tried({FC1: [0.9, 0.0, 0.3], FC1B: [0.0, 0.2, 0.2]}))[-1] == ("fc1", 1, "insert")
    assert fates(tried({FC1: [0.9, 0.01]})) == [("fc1", 0, "cull")]  # 1 % is not above 1 %
    assert fates(tried({FC1: [-0.2, 0.1]})) == [("fc1", 0, "cull")]  # its mean is below 0


def test_equal_gains_are_told_apart_by_seed():
    assert fates(tried({FC2: [0.1], FC1B: [0.1], FC1: [0.1]}))[-1] == ("fc1", 0, "insert")


@pytest.mark.parametrize("gain", [NAN, float("inf"), float("-inf")])
def test_a_gain_that_is_no_number_is_no_gain(gain):
    assert fates(tried({FC1: [0.1, gain], FC2: [0.1, 0.1]})) == [("fc1", 0, "cull"), ("fc2", 0, "insert")]


def test_a_candidate_that_could_not_be_tried_goes_with_its_reason():
    response = tried({FC1: [0.5, 0.5], FC2: [0.1]}, failed={"fc1_0": "out of memory"})
    assert fates(response) == [("fc1", 0, "cull"), ("fc2", 0, "insert")]
    assert "out of memory" in commands(response)[0].reason
    assert not only(response).candidates[-1].HasField("isolated_gain")


def test_a_seed_the_trial_says_nothing_of_does_not_stay_behind():
    response = answer(packet(seeds=seeds(fc1_0="TRAINING", fc2_0="TRAINING"), results=[trial({FC1: [0.1]})]))
    assert fates(response) == [("fc2", 0, "cull"), ("fc1", 0, "insert")]
    assert "it was never read" in commands(response)[0].reason


def test_without_a_gain_the_event_was_fruitless_and_the_cooldown_doubles():
    response = tried({FC1: [0.005], FC2: [-0.5]}, controller_state=memory(last_event_step=400))
    assert set(kinds(response)) == {"cull"}
    assert only(response).kind == pb.DECISION_KIND_REMOVE_SEED
    assert only(response).reason == "event-1: none of 2 candidates showed a gain"
    assert load(response.controller_state).fruitless_events == 1
    assert only(response).plan.cooldown_steps == 1400


def test_a_trial_that_failed_as_a_whole_gives_its_seeds_up():
    response = tried({FC1: [], FC2: []}, failed={"failure": "the worker was killed" + "!" * 5000})
    assert fates(response) == [("fc1", 0, "cull"), ("fc2", 0, "cull")]
    assert commands(response)[0].reason.startswith("the trial of event-1 failed: the worker was killed")
    assert len(commands(response)[0].reason) == 2048


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"paused": True}, "growth is paused"),
        ({"final": True}, "training is over"),
        ({"budget": {"max_added_parameters": 99}}, "100 added parameters; the budget is 99"),
    ],
)
def test_what_gained_but_may_not_enter_is_given_up_without_a_mark_against_it(changes, said):
    response = tried({FC1: [0.2], FC2: [-0.1]}, **changes)
    assert fates(response) == [("fc1", 0, "cancel"), ("fc2", 0, "cull")]
    assert only(response).reason == f"event-1: no candidate may enter the host: {said}"
    assert said in commands(response)[0].reason
    assert load(response.controller_state).fruitless_events == 0


def test_nothing_enters_while_another_graft_is_on_trial():
    states = seeds(fc1_0="TRAINING", fc2_0="EVALUATING")
    response = answer(packet(seeds=states, results=[trial({FC1: [0.2]})]))
    assert fates(response) == [("fc1", 0, "cancel")]
    assert "fc2/0 is on trial in the host" in only(response).reason


def test_of_two_trials_at_once_one_graft_enters():
    states = [seed("fc1", 0, "TRAINING"), seed("fc2", 0, "TRAINING", event_id="event-2")]
    results = [trial({FC1: [0.1]}), trial({FC2: [0.3]}, "event-2")]
    response = answer(packet(seeds=states, results=results))
    assert fates(response) == [("fc1", 0, "insert"), ("fc2", 0, "cancel")]


def test_the_next_best_enters_where_the_best_is_too_large():
    states = [seed("fc1", 0, "TRAINING", parameter_count=500), seed("fc2", 0, "TRAINING", parameter_count=100)]
    results = [trial({FC1: [0.3], FC2: [0.1]})]
    response = answer(packet(seeds=states, results=results, budget={"max_added_parameters": 200}))
    assert fates(response) == [("fc1", 0, "cancel"), ("fc2", 0, "insert")]
    assert "500 added parameters; the budget is 200" in commands(response)[0].reason


def test_a_trial_that_comes_twice_acts_once():
    result = trial({FC1: [0.2]})
    response = answer(packet(seeds=seeds(fc1_0="TRAINING"), results=[result, result]))
    assert fates(response) == [("fc1", 0, "insert")]


@pytest.mark.parametrize("state", ["DORMANT", "CULLED", "ROLLED_BACK"])
def test_a_trial_of_seeds_that_are_gone_changes_nothing(state):
    response = answer(packet(seeds=seeds(fc1_0=state), results=[trial({FC1: [0.2]})]))
    assert not commands(response)
    assert only(response).reason == "the trial of event-1 came back, and none of its seeds is TRAINING any more"
    assert load(response.controller_state).fruitless_events == 0


def test_gain_curves_are_remembered_for_the_report():
    kept = memory(tracked=[tracked(*FC1), tracked(*FC2, event_id="event-0")])
    response = tried({FC1: [0.02, 0.1], FC2: [0.3]}, controller_state=kept)
    first, other = load(response.controller_state).tracked
    assert first.isolated_steps == [100, 200]
    assert first.isolated_gains == pytest.approx([0.02, 0.1])
    assert other.isolated_gains == []  # that is another event's


def test_a_policy_without_a_nursery_inserts_what_it_chose_once_the_kernel_is_loaded():
    response = answer(packet("periodic-random", seeds=seeds(fc2_0="TRAINING")))
    assert fates(response) == [("fc2", 0, "insert")]
    assert only(response).reason == "policy periodic-random inserts title-1 at fc2/0 without a trial"
    assert only(response).plan.undo == "cull it"


@pytest.mark.parametrize("changes", [{"paused": True}, {"final": True}, {"budget": {"max_added_parameters": 99}}])
def test_and_it_waits_where_a_mask_forbids_it(changes):
    response = answer(packet("periodic-random", seeds=seeds(fc2_0="TRAINING"), **changes))
    assert not commands(response)
    assert only(response).reason.startswith("title-1 at fc2/0 waits: ")
