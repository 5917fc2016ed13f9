"""The replay store: each report once, found by every filter."""

import pytest

from esper.api.common.v1 import seed_pb2
from esper.api.simic.v1.replay_pb2 import Filter
from esper.errors import Exhausted, InvalidRequest
from esper.simic.store import ReplayStore

from .reports import at_noon, report

EVERYTHING = Filter()


def numbers(found):
    return [experience.report.end_step - 500 for experience in found]


def test_a_report_is_stored_once_and_keeps_its_place_and_time(store):
    assert store.add(report(1)) == (1, False)
    assert store.add(report(2)) == (2, False)
    assert store.add(report(1)) == (1, True)
    newest, oldest = store.newest(EVERYTHING)
    assert (newest.position, oldest.position) == (2, 1)
    assert oldest.report == report(1)
    assert oldest.store_time == at_noon()
    assert store.last_position == 2


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(), [0, 1, 2, 3]),
        (Filter(task_name="text"), [1]),
        (Filter(run_id="run-2"), [2]),
        (Filter(outcome=seed_pb2.SEED_STATE_FOSSILIZED), [3]),
        (Filter(family="attention"), [1]),
        (Filter(only_judged=True), [2, 3]),
        (Filter(only_judged=True, run_id="run-2"), [2]),
        (Filter(task_name="nothing"), []),
    ],
)
def test_filters(store, wanted, found):
    store.add(report(0))
    store.add(report(1, task_name="text", family="attention"))
    store.add(report(2, run_id="run-2", gain=0.0))
    store.add(report(3, outcome=seed_pb2.SEED_STATE_FOSSILIZED, gain=0.1))
    assert numbers(store.all(wanted)) == found
    assert numbers(store.newest(wanted)) == found[::-1]


def test_newest_is_bounded_from_both_sides(store):
    for number in range(5):
        store.add(report(number))
    assert numbers(store.newest(EVERYTHING, limit=2)) == [4, 3]
    assert numbers(store.newest(EVERYTHING, before=4, limit=2)) == [2, 1]


def test_a_filter_for_a_state_that_is_no_end_is_refused(store):
    with pytest.raises(InvalidRequest, match="SEED_STATE_GRAFTING, which is no end") as caught:
        store.newest(Filter(outcome=seed_pb2.SEED_STATE_GRAFTING))
    assert "filter.outcome" in caught.value.fields


def test_summaries_grow_with_the_store_and_are_the_same_after_a_restart(store, tmp_path):
    store.add(report(1, gain=0.1))
    assert [s.judged for s in store.summaries(EVERYTHING)] == [1]
    store.add(report(2, gain=0.3))
    store.add(report(2, gain=0.3))
    grown = store.summaries(EVERYTHING)
    assert [(s.judged, round(s.mean_gain, 12)) for s in grown] == [(2, 0.2)]
    again = ReplayStore(tmp_path / "simic.sqlite", at_noon)
    assert again.summaries(EVERYTHING) == grown
    again.close()


def test_each_kernel_is_added_up_apart_where_that_is_asked_for(store):
    store.add(report(1, gain=0.1))
    assert [(s.artifact_id, s.judged) for s in store.summaries(EVERYTHING, by_kernel=True)] == [("a" * 64, 1)]
    store.add(report(2, gain=0.3, artifact_id="b" * 64))  # of the same title
    store.add(report(3, gain=0.5, artifact_id="b" * 64))
    apart = [(s.artifact_id, s.judged, s.mean_gain) for s in store.summaries(EVERYTHING, by_kernel=True)]
    assert apart == [("a" * 64, 1, pytest.approx(0.1)), ("b" * 64, 2, pytest.approx(0.4))]
    (together,) = store.summaries(EVERYTHING)
    assert (together.artifact_id, together.judged) == ("", 3)


def test_a_full_disk_refuses_the_report_and_keeps_the_rest(store):
    store.add(report(1))
    (pages,) = store._log._db.execute("PRAGMA page_count").fetchone()
    store._log._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Exhausted, match="disk space"):
        store.add(report(2, reason="x" * 100_000))
    assert numbers(store.all(EVERYTHING)) == [1]
