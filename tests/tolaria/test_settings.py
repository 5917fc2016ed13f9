"""Settings: an unknown key names the nearest, a wrong value names its limit, messages lose nothing."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import InvalidConfig
from esper.tolaria.settings import Budget, GrowthSettings, from_mapping, read_growth, write_budget, write_growth

NAMES = [field.name for field in fields(GrowthSettings)]


@given(st.sampled_from(NAMES), st.data())
def test_a_misspelt_key_names_the_right_one(name, data):
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:place] + name[place + 1 :]
    with pytest.raises(InvalidConfig) as caught:
        from_mapping(GrowthSettings, {wrong: 1}, "growth")
    assert f"growth has no key {wrong!r}; did you mean {name!r}?" in str(caught.value)


def test_the_known_keys_are_listed():
    with pytest.raises(InvalidConfig, match=r"budget has no key 'money'; did you mean .*Known: max_added"):
        from_mapping(Budget, {"money": 1}, "budget")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ramp_steps": "30"}, "growth.ramp_steps must be int, got '30'"),
        ({"ramp_steps": 1.5}, "growth.ramp_steps must be int, got 1.5"),
        ({"ramp_steps": True}, "growth.ramp_steps must be int, got True"),
        ({"ignore_end_of_run": 1}, "growth.ignore_end_of_run must be bool, got 1"),
        ({"policy": 7}, "growth.policy must be str, got 7"),
        ({"min_gain": None}, "growth.min_gain must be float, got None"),
        ({"ablation_min_gain": 1.0}, "growth setting ablation_min_gain is a share of the loss and must be < 1"),
        ({"min_gain": -0.1}, "growth setting min_gain must be >= 0, got -0.1"),
        ({"nursery_steps": 0}, "growth setting nursery_steps must be >= 1, got 0"),
        ({"decision_every_steps": 0}, "decision_every_steps must be >= 1"),
        ({"strategy": "hopeful"}, "must be one of residual, convex, gated, got 'hopeful'"),
        ({"embargo_steps": 50}, "embargo_steps 50 is under decision_every_steps 200"),
        ({"verdict_steps": 110}, "verdict_steps 110 must be over 110, the room for a ramp of 30 steps and 5 snapshots"),
    ],
)
def test_a_wrong_value_names_its_limit(values, said):
    with pytest.raises(InvalidConfig) as caught:
        from_mapping(GrowthSettings, values, "growth")
    assert said in str(caught.value)


def test_a_whole_number_will_do_for_a_share():
    assert from_mapping(GrowthSettings, {"min_gain": 0}, "growth").min_gain == 0


def test_the_first_event_is_at_15_percent_unless_it_is_set():
    assert GrowthSettings().first_event(6000) == 900
    assert GrowthSettings().first_event(3) == 1
    assert GrowthSettings(first_event_step=40).first_event(6000) == 40


def test_settings_survive_their_message():
    settings = GrowthSettings(
        policy="bandit", first_event_step=40, min_gain=0.25, strategy="gated", ignore_end_of_run=True
    )
    assert read_growth(write_growth(settings, 6000)) == settings
    assert read_growth(write_growth(GrowthSettings(), 6000)) == GrowthSettings(first_event_step=900)


def test_a_budget_is_not_negative_and_survives_its_message():
    with pytest.raises(InvalidConfig, match="budget max_events must be >= 0, got -1"):
        Budget(max_events=-1)
    message = write_budget(Budget(max_added_parameters=500, max_total_flops_ratio=4.0))
    assert (message.max_added_parameters, message.max_total_flops_ratio) == (500, 4.0)
