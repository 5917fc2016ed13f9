"""The default: when it begins, what it tries, and that it takes nothing unmeasured for healthy."""

import pytest

from .scenes import KERNELS, answer, commands, germinated, kernel, memory, only, packet, seed, seeds, site, summary

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("policy", ["heuristic", "bandit"])
@pytest.mark.parametrize(
    "changes, said",
    [
        ({"validation_loss": None, "best_validation_loss": None}, "validation is not measured yet"),
        ({"best_validation_loss": None}, "validation is not measured yet"),
        ({"validation_loss": NAN}, "losses that are not finite: training 0.5, validation nan"),
        ({"train_loss": NAN}, "losses that are not finite"),
        ({"train_loss": INF}, "losses that are not finite"),
        ({"sites": [site("fc1"), site("fc2", gradient_norm=None)]}, "no gradient measured yet at fc2"),
        ({"sites": [site("fc1"), site("fc2", gradient_norm=NAN)]}, "no gradient measured yet at fc2"),
        ({"sites": [site("fc1"), site("fc2", gradient_norm=INF)]}, "no gradient measured yet at fc2"),
    ],
)
def test_unmeasured_is_never_healthy(policy, changes, said):
    response = answer(packet(policy, **changes))
    assert said in only(response).reason
    assert not commands(response)


def turned(validation=0.70, best=0.55, train=0.5, since=600):
    """Validation that was best `since` steps ago."""
    return packet(
        validation_loss=validation,
        best_validation_loss=best,
        train_loss=train,
        validation_step=1000,
        best_validation_step=1000 - since,
    )


def test_a_run_that_overfits_does_not_grow():
    response = answer(turned())
    assert not commands(response)
    assert only(response).reason == "validation is 1.27 times its best of step 400, 1.40 times training"


@pytest.mark.parametrize(
    "healthy",
    [
        turned(validation=0.60),  # within a tenth of its best
        turned(since=500),  # not for long enough
        turned(train=0.65),  # training is no better than validation
    ],
    ids=["near its best", "only just", "training is as bad"],
)
def test_one_sign_alone_is_not_over_fitting(healthy):
    assert commands(answer(healthy))


def test_a_site_that_no_gradient_reaches_is_left_out():
    sites = [site("fc1", gradient_norm=0.0), site("fc2")]
    assert {name for name, _, _ in germinated(answer(packet(sites=sites)))} == {"fc2"}


def test_every_seed_of_every_site_tries_another_kernel():
    tried = germinated(answer(packet()))
    assert [(name, slot) for name, slot, _ in tried] == [("fc1", 0), ("fc1", 1), ("fc2", 0), ("fc2", 1)]
    assert len({(name, number) for name, _, number in tried}) == 4


def test_before_anything_is_known_the_largest_is_the_most_promising():
    assert germinated(answer(packet(settings={"candidates_per_site": 1}))) == [("fc1", 0, 3), ("fc2", 0, 3)]


def test_what_gained_before_is_preferred_to_size():
    rows = [summary(1, mean_isolated_gain=0.2), summary(3, mean_isolated_gain=-0.1)]
    response = answer(packet(settings={"candidates_per_site": 1}), summaries=rows)
    assert germinated(response) == [("fc1", 0, 1), ("fc2", 0, 1)]
    assert only(response).candidates[0].expected_reward == pytest.approx(0.2)
    assert only(response).candidates[0].reason == "isolated gain +20.00% over 10 earlier trials of its kind"


def test_two_trials_are_not_yet_experience():
    rows = [summary(1, tried=2, mean_isolated_gain=0.9)]
    response = answer(packet(settings={"candidates_per_site": 1}), summaries=rows)
    assert germinated(response)[0] == ("fc1", 0, 3)
    assert not only(response).candidates[0].HasField("expected_reward")


def test_families_are_spread_before_a_second_of_one_family_is_taken():
    kernels = [kernel(1), kernel(8, family="large"), kernel(9, family="large")]
    state = packet(seeds=[seed("fc1", slot) for slot in range(3)], sites=[site()])
    tried = [number for _, _, number in germinated(answer(state, kernels))]
    assert tried[:2] == [9, 1]
    assert set(tried) == {9, 1, 8}


def test_one_place_is_for_what_was_tried_least():
    blueprint = {number: KERNELS[number - 1].blueprint_id for number in (1, 2)}
    tried = memory(tries={f"{name} {blueprint[1]}": 2 for name in ("fc1", "fc2")})
    numbers = {number for _, _, number in germinated(answer(packet(controller_state=tried)))}
    assert numbers == {3, 2}


def test_growth_ends_where_no_gain_is_expected_that_would_be_kept():
    rows = [summary(n, mean_isolated_gain=0.01) for n in (1, 2, 3)]
    response = answer(packet(), summaries=rows)
    assert not commands(response)
    assert only(response).reason == (
        "the best expected gain is +1.00%; a gain of 1.0% or less is not kept, so no event pays"
    )


def test_growth_goes_on_while_one_candidate_is_unknown_or_promising():
    unknown = [summary(n, mean_isolated_gain=-0.5) for n in (1, 2)]
    assert commands(answer(packet(), summaries=unknown))
    promising = [summary(1, mean_isolated_gain=0.011), *(summary(n, mean_isolated_gain=-0.5) for n in (2, 3))]
    assert commands(answer(packet(), summaries=promising))


def test_an_event_leaves_seeds_under_embargo_alone():
    state = packet(seeds=seeds())
    state.seeds[0].embargo_until_step = 1001  # fc1/0
    assert [key[:2] for key in germinated(answer(state))] == [("fc1", 1), ("fc2", 0), ("fc2", 1)]
    state.seeds[0].embargo_until_step = 1000
    assert ("fc1", 0) in [key[:2] for key in germinated(answer(state))]
