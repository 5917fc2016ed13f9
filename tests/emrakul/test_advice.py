"""Advice over a run: findings are kept, and neither repetition, restart nor rollback makes a removal of them."""

import protovalidate
import pytest

from esper.emrakul.advice import Sculptor, finding_log
from esper.errors import InvalidRequest
from tests.tamiyo.scenes import at_once, noon, seed

from .fossils import fossil, point, probed


@pytest.fixture
def findings(tmp_path):
    log = finding_log(tmp_path / "findings.sqlite")
    yield log
    log.close()


@pytest.fixture
def sculptor(findings):
    return Sculptor(findings, noon)


def advised(sculptor, packet):
    """The commands, by what they do."""
    response = at_once(sculptor.advise(packet))
    for command in response.commands:
        protovalidate.validate(command)
    return [(c.WhichOneof("action"), _seeds(c)) for c in response.commands]


def _seeds(command):
    seeds = command.probe.seeds if command.HasField("probe") else [command.remove.seed]
    return [f"{s.site}/{s.slot}" for s in seeds]


REMOVED = [("remove", ["fc1/0"])]


def test_a_fossil_is_probed_after_the_period_and_once(sculptor):
    assert advised(sculptor, point(24)) == []
    assert advised(sculptor, point(25)) == [("probe", ["fc1/0"])]
    assert advised(sculptor, point(26)) == []
    assert advised(sculptor, point(39)) == []
    assert advised(sculptor, point(40)) == [("probe", ["fc1/0"])]


def test_what_is_removed_is_not_probed_as_well(sculptor):
    both = {"seeds": [fossil("fc1"), fossil("fc2")]}
    assert advised(sculptor, point(25)) == [("probe", ["fc1/0"])]
    advised(sculptor, point(26, probed(-0.02, probe_id="p25")))
    answer = advised(sculptor, point(90, probed(-0.02, probe_id="p40"), **both))
    assert answer == [("remove", ["fc1/0"]), ("probe", ["fc2/0"])]


def test_a_probe_names_its_decision_point(sculptor):
    (command,) = at_once(sculptor.advise(point(25))).commands
    assert (command.command_id, command.probe.probe_id) == ("run-1/probe/25", "p25")
    assert (command.issuer, command.run_id) == ("emrakul", "run-1")
    assert command.reason == "1 fossils have not been probed for 1500 steps"


def test_folded_fossils_are_neither_probed_nor_removed(sculptor):
    folded = {"seeds": [fossil(folded=True)]}
    assert advised(sculptor, point(25, **folded)) == []
    for sequence in (26, 27, 28):
        assert advised(sculptor, point(sequence, probed(-0.5, probe_id=f"p{sequence}"), **folded)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"paused": True},
        {"final": True},
        {"settings": {"probe_every_steps": 0}},
        {"seeds": [fossil(), seed("fc2", 0, "TRAINING")]},
        {"seeds": [fossil(), seed("fc2", 0, "FINE_TUNING")]},
        {"seeds": [seed("fc1", 0, "CULLED")]},
    ],
)
def test_nothing_is_probed_while_something_hinders_it(sculptor, changes):
    assert advised(sculptor, point(25, **changes)) == []


def test_two_probes_in_a_row_without_use_remove_a_fossil(sculptor, findings):
    assert advised(sculptor, point(26, probed(-0.02, probe_id="p25"))) == []
    assert advised(sculptor, point(41, probed(-0.01, probe_id="p40"))) == REMOVED
    kept = list(findings.all())
    assert [(f.probe_id, f.remove, f.step) for f in kept] == [("p25", False, 2600), ("p40", True, 4100)]
    assert kept[0].measurement.mean > kept[0].measurement.control_mean
    assert kept[0].time == noon()


def test_a_removal_says_why_and_can_be_told_from_every_other(sculptor):
    advised(sculptor, point(26, probed(-0.02, probe_id="p25")))
    response = at_once(sculptor.advise(point(41, probed(-0.01, probe_id="p40"))))
    (command,) = response.commands
    assert command.command_id == "run-1/remove/41"
    assert command.reason == response.findings[0].reason
    assert command.reason.startswith("fc1/0 shows no use in 2 probes in a row: held-out gain -1.00%")


def test_a_fossil_that_pays_in_between_begins_anew(sculptor):
    for sequence, gain in ((26, -0.02), (41, 0.1), (56, -0.02)):
        assert advised(sculptor, point(sequence, probed(gain, probe_id=f"p{sequence - 1}"))) == []
    assert advised(sculptor, point(71, probed(-0.02, probe_id="p70"))) == REMOVED


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_probe_that_measured_nothing_neither_counts_nor_clears(sculptor, nothing):
    assert advised(sculptor, point(26, probed(-0.02, probe_id="p25"))) == []
    assert advised(sculptor, point(35, probed(nothing, probe_id="p34"))) == []
    assert advised(sculptor, point(36, probed(nothing, probe_id="p35"))) == []
    assert advised(sculptor, point(37, probed(-0.02, probe_id="p36"))) == REMOVED


def test_the_same_packet_again_gets_the_same_answer(sculptor):
    """The controller's worker may ask again after it was killed."""
    first = point(26, probed(-0.02, probe_id="p25"))
    for _ in range(3):
        assert advised(sculptor, first) == []
    last = point(41, probed(-0.02, probe_id="p40"))
    assert at_once(sculptor.advise(last)) == at_once(sculptor.advise(last))
    assert advised(sculptor, last) == REMOVED
    due = point(60)
    assert at_once(sculptor.advise(due)) == at_once(sculptor.advise(due))
    assert advised(sculptor, due) == [("probe", ["fc1/0"])]


def test_findings_outlive_the_process(findings):
    assert advised(Sculptor(findings, noon), point(26, probed(-0.02, probe_id="p25"))) == []
    again = Sculptor(findings, noon)
    assert advised(again, point(40)) == []  # the last finding is 1400 steps old
    assert advised(again, point(41, probed(-0.02, probe_id="p40"))) == REMOVED


def test_two_runs_share_neither_findings_nor_periods(sculptor):
    advised(sculptor, point(26, probed(-0.02, probe_id="p25")))
    other = {"run_id": "run-2"}
    assert advised(sculptor, point(41, probed(-0.02, probe_id="p40"), **other)) == []
    assert advised(sculptor, point(60)) == [("probe", ["fc1/0"])]
    assert advised(sculptor, point(60, **other)) == [("probe", ["fc1/0"])]


def test_of_two_useless_fossils_the_worse_goes_and_the_other_is_probed_without_it(sculptor):
    both = {"seeds": [fossil("fc1"), fossil("fc2")]}

    def results(*gains, probe_id):
        return [probed(g, f"fc{n}/0", probe_id) for n, g in enumerate(gains, start=1)]

    assert advised(sculptor, point(26, *results(-0.01, -0.2, probe_id="p25"), **both)) == []
    assert advised(sculptor, point(41, *results(-0.01, -0.2, probe_id="p40"), **both)) == [("remove", ["fc2/0"])]
    # without the other it is needed
    assert advised(sculptor, point(56, *results(0.1, probe_id="p55"))) == []


@pytest.mark.parametrize(
    "hindered", [{"paused": True}, {"final": True}, {"seeds": [fossil(), seed("fc2", 0, "GRAFTING")]}]
)
def test_a_removal_waits_while_it_would_confound_or_is_not_wanted(sculptor, hindered):
    advised(sculptor, point(26, probed(-0.02, probe_id="p25")))
    assert advised(sculptor, point(41, probed(-0.02, probe_id="p40"), **hindered)) == []
    assert advised(sculptor, point(56, probed(-0.02, probe_id="p55"))) == REMOVED


@pytest.mark.parametrize("now", [[], [seed("fc1", 0)], [seed("fc1", 0, "CULLED")], [seed("fc1", 0, "ROLLED_BACK")]])
def test_a_fossil_that_is_gone_is_not_removed(sculptor, now):
    advised(sculptor, point(26, probed(-0.02, probe_id="p25")))
    assert advised(sculptor, point(41, probed(-0.02, probe_id="p40"), seeds=now)) == []


def test_what_the_slot_held_before_does_not_count_against_a_new_fossil(sculptor):
    advised(sculptor, point(26, probed(-0.02, probe_id="p25")))
    fresh = {"seeds": [fossil(state_step=3000)]}
    assert advised(sculptor, point(46, probed(-0.02, probe_id="p45"), **fresh)) == []
    assert advised(sculptor, point(61, probed(-0.02, probe_id="p60"), **fresh)) == REMOVED


def test_a_fossil_put_back_after_its_removal_begins_anew(sculptor):
    advised(sculptor, point(26, probed(-0.02, probe_id="p25")))
    assert advised(sculptor, point(41, probed(-0.02, probe_id="p40"))) == REMOVED
    assert advised(sculptor, point(60, probed(-0.02, probe_id="p59"), paused=True)) == []
    assert advised(sculptor, point(61, probed(-0.02, probe_id="p60"))) == REMOVED


def test_what_a_rollback_has_undone_does_not_count(sculptor):
    advised(sculptor, point(26, probed(-0.02, probe_id="p25")))
    back = {"step": 2500}  # decision points are counted on
    assert advised(sculptor, point(27, probed(-0.02, probe_id="p26"), **back)) == []


def test_probes_go_on_after_a_rollback_behind_the_last_one(sculptor):
    assert advised(sculptor, point(60)) == [("probe", ["fc1/0"])]
    assert advised(sculptor, point(61, step=3000)) == [("probe", ["fc1/0"])]


def test_a_probe_of_more_fossils_than_a_command_carries_is_cut(sculptor):
    many = [fossil(f"fc{n}") for n in range(300)]
    ((_, seeds),) = advised(sculptor, point(25, seeds=many))
    assert len(seeds) == 256


def test_long_names_fit_into_every_command(sculptor):
    name = "encoder." * 30 + "fc"
    here = {"seeds": [fossil(name)], "run_id": "r" * 64}
    assert advised(sculptor, point(25, **here)) == [("probe", [f"{name}/0"])]
    advised(sculptor, point(26, probed(-0.1, f"{name}/0", "p25"), **here))
    assert advised(sculptor, point(39, probed(-0.1, f"{name}/0", "p38"), **here)) == [("remove", [f"{name}/0"])]


@pytest.mark.parametrize("label", ["probe:p1:fc1", "probe:p1:fc1/x", "probe:p1:/0"])
def test_a_probe_of_nothing_is_an_invalid_request(sculptor, label):
    result = probed(-0.1)
    result.measure.label = label
    with pytest.raises(InvalidRequest, match="is no probe"):
        at_once(sculptor.advise(point(26, result)))


def test_verdicts_and_validations_are_none_of_its_business(sculptor, findings):
    other = probed(-0.5)
    other.measure.label = "verdict:fc1/0:1:twin"
    plain = probed(-0.5)
    plain.measure.label = "validation"
    assert advised(sculptor, point(20, other, plain)) == []
    assert findings.last_position == 0
