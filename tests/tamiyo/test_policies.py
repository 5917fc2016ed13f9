"""Every policy behind the one port: named, pure, and held to the bounds even where it lies."""

import pytest

from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.errors import InvalidConfig
from esper.tamiyo import policies
from esper.tamiyo.codec import read_option
from esper.tamiyo.memory import load
from esper.tamiyo.policies import POLICIES, policy_named
from esper.tamiyo.policy import Choice, Offer

from .scenes import KERNELS, answer, commands, germinated, kernel, memory, only, packet, site, summary, tracked

PLATEAU = memory(losses=[(100 * i, 0.5) for i in range(6)])
GROWING = sorted(set(POLICIES) - {"never"})
TOO_LARGE = read_option(kernel(9))


def grown(policy, *arguments, **changes):
    """What a policy germinates in a run that stands still."""
    changes = {"controller_state": PLATEAU} | changes
    summaries = changes.pop("summaries", [summary(1), summary(2, mean_gain=0.08)])
    return answer(packet(policy, **changes), *arguments, summaries=summaries)


def test_all_the_policies_asked_for_are_there():
    assert set(POLICIES) == {
        "never",
        "periodic-random",
        "largest-on-schedule",
        "task-prior",
        "plateau",
        "heuristic",
        "bandit",
    }
    assert all(policy.name == name and policy.description for name, policy in POLICIES.items())


def test_an_unknown_policy_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(InvalidConfig, match=r"no policy 'greedy'; there are never, periodic-random, .*, bandit"):
        answer(packet("greedy"))


def test_the_learned_policy_is_refused_by_name_and_names_what_to_take():
    with pytest.raises(InvalidConfig, match="'gnn' is not in this release; 'heuristic' and 'bandit'"):
        policy_named("gnn")


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_packet_gets_the_same_answer(policy):
    assert grown(policy) == grown(policy)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_order_in_which_the_library_answers_makes_no_difference(policy):
    assert grown(policy, KERNELS) == grown(policy, KERNELS[::-1])


@pytest.mark.parametrize("policy", GROWING)
def test_a_command_comes_with_a_complete_plan(policy):
    decision = only(grown(policy))
    plan = decision.plan
    assert decision.kind == pb.DECISION_KIND_ADD_SEED
    assert plan.steps and plan.preconditions and plan.undo
    assert plan.cooldown_steps == 700
    assert plan.cost.parameters > 0 and plan.cost.bytes == 12 * plan.cost.parameters
    assert plan.cost.flops > 0
    assert [c.reason for c in plan.commands] and all(c.decision_id == decision.decision_id for c in plan.commands)


def test_never_does_nothing_and_says_so():
    assert only(grown("never")).reason == "this policy never grows"


def test_periodic_random_draws_by_run_seed_and_decision_point():
    drawn = {(s, n): germinated(grown("periodic-random", random_seed=s, sequence=n)) for s in range(6) for n in (1, 2)}
    assert all(len(choice) == 1 for choice in drawn.values())
    assert len({tuple(choice) for choice in drawn.values()}) >= 4
    assert any(drawn[s, 1] != drawn[s, 2] for s in range(6))


def test_largest_on_schedule_takes_sites_in_turn():
    turns = [germinated(grown("largest-on-schedule", controller_state=memory(turn=turn)))[0] for turn in range(3)]
    assert turns == [("fc1", 0, 3), ("fc2", 0, 3), ("fc1", 0, 3)]


def test_the_task_prior_takes_the_best_mean_gain_of_this_task():
    assert germinated(grown("task-prior")) == [("fc2", 0, 2)]
    elsewhere = [summary(3, task_name="text", mean_gain=0.5), summary(1)]
    assert germinated(grown("task-prior", summaries=elsewhere)) == [("fc2", 0, 1)]


def test_the_task_prior_falls_back_to_isolated_gains_where_too_little_was_judged():
    rows = [summary(1, judged=1, mean_gain=0.9, mean_isolated_gain=0.02), summary(2, judged=4, mean_gain=0.03)]
    assert germinated(grown("task-prior", summaries=rows)) == [("fc2", 0, 2)]


@pytest.mark.parametrize(
    "summaries, said",
    [
        ([], "no field reports on task 'digits' yet"),
        ([summary(1, tried=1)], "no field reports on task 'digits' yet"),
        ([summary(1, mean_gain=-0.1)], "the policy takes none of the offers"),
    ],
)
def test_the_task_prior_does_not_grow_without_a_reason(summaries, said):
    response = grown("task-prior", summaries=summaries)
    assert said in only(response).reason
    assert not commands(response)


def test_plateau_waits_for_its_window_and_for_the_loss_to_stop():
    assert "decision points seen" in only(answer(packet("plateau"))).reason
    falling = memory(losses=[(100 * i, 1.0 - 0.1 * i) for i in range(6)])
    assert "the training loss fell" in only(grown("plateau", controller_state=falling)).reason
    assert not commands(grown("plateau", controller_state=falling))


def test_plateau_grows_the_largest_where_the_gradient_is_largest():
    sites = [site("fc1", gradient_norm=0.1), site("fc2", gradient_norm=0.3)]
    assert germinated(grown("plateau", sites=sites)) == [("fc2", 0, 3)]


def test_plateau_does_not_take_an_unmeasured_gradient_for_zero():
    nowhere = [site(name, gradient_norm=None) for name in ("fc1", "fc2")]
    assert not commands(grown("plateau", sites=nowhere))
    sites = [site("fc1", gradient_norm=None), site("fc2", gradient_norm=0.001)]
    assert germinated(grown("plateau", sites=sites)) == [("fc2", 0, 3)]


class Greedy:
    """Asks for more than there is: more than the room, kernels twice, kernels that no mask lets through."""

    name = "greedy"
    description = "breaks every rule it can"
    uses_nursery = True

    def timing(self, situation):
        return True, "always"

    def choose(self, situation, room):
        refused = [Offer(offer.site, TOO_LARGE) for offer in situation.offers]
        return [Choice(offer, "more") for offer in [*refused, *situation.offers, *situation.offers]]


def test_a_policy_that_breaks_the_rules_is_cut_to_them(monkeypatch):
    monkeypatch.setitem(policies.POLICIES, "greedy", Greedy())
    response = grown("greedy", [*KERNELS, kernel(9)], budget={"max_added_parameters": 350})
    assert germinated(response) == [("fc1", 0, 1), ("fc1", 1, 2), ("fc2", 0, 1), ("fc2", 1, 2)]


def test_what_an_earlier_life_left_behind_does_not_speak_for_the_new_one():
    # its germination was refused, or its end was not seen
    stale = memory(losses=[(i, 0.5) for i in range(6)], tracked=[tracked("fc1", 0, event_id="event-0")])
    kept = load(grown("largest-on-schedule", controller_state=stale).controller_state).tracked
    assert [(t.site, t.slot, t.event_id) for t in kept] == [("fc1", 0, "event-1")]
