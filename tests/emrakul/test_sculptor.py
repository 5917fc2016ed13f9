"""When to probe and what to remove, at the boundaries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.emrakul.sculptor import STRIKES, Finding, Fossil, Probed, is_useless, judge, one_at_a_time, probe_now
from esper.stats.paired import Paired, compare
from esper.stats.verdict import Rule
from esper.stats.verdict import judge as keeps


def paired(gain, *, error=0.01, pairs=250):
    return Paired(pairs, 1.0 - gain, 1.0, error)


def probe(gain, seed="fc1", **numbers):
    return Probed("p1", seed, 0, paired(gain, **numbers))


FOSSIL, FOLDED = Fossil("fc1", 0, 1000, False), Fossil("fc2", 0, 1000, True)


@pytest.mark.parametrize(
    "fossils, step, last, every, hindrance, reason",
    [
        ([FOSSIL], 9000, 0, 0, "", "probing is switched off"),
        ([], 9000, 0, 1500, "", "no fossil kept as a branch"),
        ([FOLDED], 9000, 0, 1500, "", "no fossil kept as a branch"),
        ([FOSSIL], 9000, 0, 1500, "a graft is on trial", "a graft is on trial"),
        ([FOSSIL], 2499, 0, 1500, "", "the next probe is due at step 2500"),
        ([FOSSIL], 4499, 3000, 1500, "", "the next probe is due at step 4500"),
    ],
)
def test_it_says_why_nothing_is_probed(fossils, step, last, every, hindrance, reason):
    assert probe_now(fossils, step, last, every, hindrance) == ([], reason)


@pytest.mark.parametrize("step, last", [(2500, 0), (4500, 3000), (9000, 1000)])
def test_every_fossil_that_can_be_switched_off_is_probed_when_it_is_due(step, last):
    found, reason = probe_now([FOSSIL, FOLDED], step, last, 1500, "")
    assert found == [FOSSIL]
    assert reason == "1 fossils have not been probed for 1500 steps"


@pytest.mark.parametrize("gain, pays", [(1e-9, True), (0.5, True), (0.0, False), (-1e-9, False), (-0.5, False)])
def test_a_fossil_pays_if_the_model_is_worse_without_it(gain, pays):
    finding = judge(probe(gain), {})
    assert ("pays" in finding.reason) is pays
    assert not finding.remove


def test_one_probe_is_not_enough_and_two_in_a_row_are():
    first = judge(probe(-0.02), {})
    assert not first.remove
    assert first.reason.startswith("fc1/0 shows no use for the first time of 2: held-out gain -2.00% ± 1.00%")
    second = judge(probe(-0.02), {"fc1/0": 1})
    assert second.remove
    assert second.reason.startswith("fc1/0 shows no use in 2 probes in a row")
    assert not judge(probe(-0.02), {"fc2/0": 1}).remove
    assert not judge(probe(0.02), {"fc1/0": 5}).remove


def test_what_hinders_a_removal_is_said_and_keeps_the_fossil():
    finding = judge(probe(-0.02), {"fc1/0": 3}, "a graft is on trial")
    assert not finding.remove
    assert finding.reason.endswith("it stays for now: a graft is on trial")


@pytest.mark.parametrize(
    "unmeasured",
    [
        Paired(0, 0.0, 0.0, 0.0),
        Paired(1, 1.0, 0.5, 0.0),
        Paired(250, math.nan, 1.0, 0.1),
        Paired(250, 1.0, math.nan, 0.1),
        Paired(250, math.inf, math.inf, 0.1),
        Paired(250, 1.1, 1.0, math.nan),
    ],
)
def test_what_was_not_measured_is_no_ground_for_removal(unmeasured):
    finding = judge(Probed("p1", "fc1", 0, unmeasured), {"fc1/0": 9})
    assert not finding.remove
    assert finding.reason.startswith("fc1/0 was not measured")
    assert not is_useless(unmeasured)


finite = st.floats(-1e6, 1e6)


@given(finite, finite, st.floats(0, 1e6))
def test_the_judgement_is_growths_own_with_thresholds_of_zero(mean, control, error):
    seen = Paired(250, mean, control, error)
    kept, _ = keeps(seen, Rule(min_gain=0.0, min_standard_errors=0.0))
    assert is_useless(seen) is not kept
    assert judge(Probed("p1", "fc1", 0, seen), {"fc1/0": STRIKES}).remove is not kept


def test_only_the_worst_goes_at_a_time():
    strikes = {"fc1/0": 1, "fc2/0": 1, "fc3/0": 1}
    findings = one_at_a_time([judge(probe(g, s), strikes) for g, s in ((-0.01, "fc1"), (-0.2, "fc2"), (0.3, "fc3"))])
    assert [f.remove for f in findings] == [False, True, False]
    assert findings[0].reason.endswith("it stays for now: fc2/0 goes first")
    assert "goes first" not in findings[2].reason


def test_equals_are_told_apart_by_name():
    going = [Finding(probe(-0.1, s), True, "no use") for s in ("fc2", "fc1")]
    assert [f.remove for f in one_at_a_time(going)] == [False, True]


def removal_rate(effect, runs=400):
    """Share of fossils removed within five probes, each on 64 fresh examples; `effect` in standard deviations."""
    generator = torch.Generator().manual_seed(0)
    removed = 0
    for _ in range(runs):
        strikes = {}
        for _ in range(5):
            without = torch.randn(64, generator=generator) + 10
            noise = torch.randn(64, generator=generator)
            finding = judge(Probed("p", "fc1", 0, compare(without - effect - noise, without)), strikes)
            if finding.remove:
                removed += 1
                break
            strikes = {"fc1/0": strikes.get("fc1/0", 0) + 1} if is_useless(finding.probed.paired) else {}
    return removed / runs


def test_what_harms_goes_and_what_pays_stays():
    assert removal_rate(-0.5) == 1.0  # the model is better without it, by 4 standard errors
    assert removal_rate(0.5) == 0.0
    assert removal_rate(0.25) < 0.01  # it pays by 2 standard errors
    assert removal_rate(0.0) > 0.5  # of no use at all
