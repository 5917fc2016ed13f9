"""Thompson sampling: what it learns from rewards, what it explores, and that replies carry both."""

import random

import pytest

from esper.tamiyo.codec import read_experience, read_option, read_packet
from esper.tamiyo.memory import Memory
from esper.tamiyo.policies.bandit import MAX_CANDIDATES, NOISE_DEVIATION, PRIOR_DEVIATION, PRIOR_MEAN, posterior
from esper.tamiyo.policy import Offer, Situation

from .scenes import answer, germinated, kernel, only, packet, seed, site, summary


def offered(number, summaries):
    """An offer at fc1 and the situation it is made in."""
    view = read_packet(packet("bandit"))
    experience = tuple(map(read_experience, summaries))
    offer = Offer(view.sites[0], read_option(kernel(number)))
    return Situation(view, Memory(), (offer,), experience, random.Random(0)), offer


def test_without_experience_the_prior_speaks():
    assert posterior(*offered(1, [])) == pytest.approx((PRIOR_MEAN, PRIOR_DEVIATION))
    assert posterior(*offered(1, [summary(2)])) == pytest.approx((PRIOR_MEAN, PRIOR_DEVIATION))


@pytest.mark.parametrize("tried, gain", [(1, 0.10), (7, -0.05), (1000, 0.03)])
def test_rewards_move_the_posterior_as_the_normal_model_says(tried, gain):
    mean, deviation = posterior(*offered(1, [summary(1, tried=tried, mean_isolated_gain=gain)]))
    weight = tried / NOISE_DEVIATION**2 / (tried / NOISE_DEVIATION**2 + 1 / PRIOR_DEVIATION**2)
    assert mean == pytest.approx(weight * gain + (1 - weight) * PRIOR_MEAN)
    assert deviation == pytest.approx((tried / NOISE_DEVIATION**2 + 1 / PRIOR_DEVIATION**2) ** -0.5)


def test_a_kernel_of_a_known_family_inherits_the_whole_familys_experience():
    family = [
        summary(1, title="a", family="mlp", tried=1, mean_isolated_gain=0.3),
        summary(2, title="b", family="mlp", tried=9, mean_isolated_gain=0.0),
        summary(3, title="c", family="conv", tried=9, mean_isolated_gain=-0.9),
    ]
    situation, offer = offered(4, family)
    kin = Offer(offer.site, read_option(kernel(4, family="mlp")))
    mean, _ = posterior(situation, kin)
    together, _ = posterior(*offered(1, [summary(1, tried=10, mean_isolated_gain=0.03)]))
    assert mean == pytest.approx(together)
    assert posterior(Situation(*_with(situation, family[::-1])), kin)[0] == mean


def _with(situation, summaries):
    return situation.view, situation.memory, situation.offers, tuple(map(read_experience, summaries)), situation.rng


def test_experience_of_another_task_or_layer_kind_does_not_count():
    elsewhere = [summary(1, task_name="text"), summary(1, layer_kind="Conv2d")]
    assert posterior(*offered(1, elsewhere)) == pytest.approx((PRIOR_MEAN, PRIOR_DEVIATION))


def test_replies_carry_expected_reward_and_exploration_bonus():
    rows = [summary(n, tried=50, mean_isolated_gain=0.04 * n) for n in (1, 2, 3)]
    decision = only(answer(packet("bandit"), summaries=rows))
    for candidate in decision.candidates:
        assert candidate.chosen
        number = int(candidate.artifact_id, 16)
        assert candidate.expected_reward == pytest.approx(posterior(*offered(number, rows))[0])
        assert candidate.HasField("exploration_bonus")
        sampled = candidate.expected_reward + candidate.exploration_bonus
        assert candidate.reason == f"sampled gain {sampled:+.2%}"
    ordered = [c.expected_reward + c.exploration_bonus for c in decision.candidates if c.seed.site == "fc1"]
    assert ordered == sorted(ordered, reverse=True)


def test_what_is_known_to_gain_is_tried_far_more_often_and_the_unknown_now_and_then():
    rows = [
        summary(1, tried=200, mean_isolated_gain=0.10),
        summary(2, tried=200, mean_isolated_gain=-0.10),
        summary(3, tried=0, mean_isolated_gain=0.0),
    ]
    times = {1: 0, 2: 0, 3: 0}
    for sequence in range(200):
        state = packet("bandit", sequence=sequence + 1, sites=[site()], seeds=[seed("fc1", 0)])
        for _, _, number in germinated(answer(state, summaries=rows)):
            times[number] += 1
    assert times[2] == 0
    assert times[1] > 150
    assert times[3] > 5


def test_an_event_tries_a_few_over_all_sites():
    names = [f"fc{n}" for n in range(5)]
    state = packet(
        "bandit", sites=[site(name) for name in names], seeds=[seed(name, slot) for name in names for slot in range(3)]
    )
    tried = germinated(answer(state))
    assert len(tried) == MAX_CANDIDATES
    assert len({(name, number) for name, _, number in tried}) == MAX_CANDIDATES
