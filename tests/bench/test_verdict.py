"""The rates and the threshold that `verdict` finds, on gains made up for it; and a graft that is one."""

import pytest
import torch

from bench.growth.bench_verdict import QUICK, case_rows, left_out, threshold
from bench.growth.grafted import Graftable, Judged, graftables, judged, trained
from esper.stats.paired import Paired
from esper.tolaria.replay import Replay
from tests import builders


def seen(gain, standard_error=0.0):
    return Paired(pairs=100, mean=1 - gain, control_mean=1.0, standard_error=standard_error)


def graft(ablation, elsewhere, twin=0.0):
    return Judged(Graftable("a", None, "made up"), 0, seen(twin), seen(ablation), seen(elsewhere))


WORTHLESS = [graft(gain / 100, elsewhere=0.0) for gain in range(1, 11)]  # switched off, they miss 1 to 10 %


def test_the_threshold_lets_no_more_of_the_worthless_pass_than_the_rate():
    found = threshold(WORTHLESS, 0.2)
    assert found == pytest.approx(0.08)
    assert sum(each.ablation.gain > found for each in WORTHLESS) == 2
    assert threshold([*WORTHLESS, graft(0.9, elsewhere=0.5)], 0.2) == found  # the useful have no say in it


def test_a_worthless_graft_that_the_rule_culls_anyway_does_not_raise_the_threshold():
    noisy = Judged(WORTHLESS[0].place, 0, seen(0), seen(0.5, standard_error=1.0), seen(0.0))
    assert threshold([noisy] * 9 + [graft(0.03, elsewhere=0.0)], 0.1) == 0.0


def test_without_anything_worthless_there_is_nothing_to_hold_back():
    assert threshold([graft(0.5, elsewhere=0.5)], 0.1) == 0.0


def test_a_seed_is_judged_at_the_threshold_of_the_others():
    low, high = [graft(0.02, 0.0)] * 4, [graft(0.5, 0.0)] * 4
    assert left_out([low, high], rate=0.0) == pytest.approx(0.5)  # all of `high` pass what was learnt of `low`
    assert left_out([[graft(0.5, 0.5)]], rate=0.1) is None


def test_rates_are_of_the_worthless_and_what_is_missed_of_the_others():
    useful = [graft(0.3, elsewhere=0.2, twin=0.2), graft(0.01, elsewhere=0.2, twin=0.0)]
    rows = {row.metric: row.value for row in case_rows("made up", [[*WORTHLESS, graft(0.2, 0.0, twin=0.3)], useful])}
    assert rows["grafts"] == 13 and rows["worthless"] == 11
    assert rows["twin_false_keep_rate"] == pytest.approx(1 / 11)
    assert rows["twin_missed_rate"] == pytest.approx(0.5)
    assert rows["ablation_at_threshold_false_keep_rate"] <= rows["nominal_false_keep_rate"]


def test_a_graft_is_trained_with_its_host_and_its_twin_without():
    task = builders.task(target_layers=["0"])
    start = next(trained(task, [3]))
    places = graftables(task)
    assert {place.site for place in places} == {"0"} and len(places) > 1
    found = list(judged(task, start, places[:2], QUICK))
    assert [each.place for each in found] == places[:2]
    for each in found:
        assert each.inserted_step == 3
        assert each.ablation.mean == each.twin.mean  # the same arm
        assert each.ablation.control_mean != each.twin.control_mean  # the host has learnt beside the graft
        assert each.elsewhere.pairs > each.twin.pairs
    again = next(iter(judged(task, start, places[:1], QUICK)))
    assert again.twin == found[0].twin and again.ablation == found[0].ablation
    plain = Replay(task, start)
    assert plain.step == 3 and torch.isfinite(plain.gradients())
