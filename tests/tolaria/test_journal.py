"""What took effect is written before it acts, numbered, and handed out again by step."""

import pytest

from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.errors import Conflict, Corrupt
from esper.kasmina.lifecycle import SeedId
from esper.tolaria.entries import read_entry, write_entry
from esper.tolaria.journal import NAME, Journal, read_journal, undone
from esper.tolaria.line import Loaded


@pytest.fixture
def open_journal(tmp_path):
    made = []

    def make(name=NAME):
        made.append(Journal(tmp_path / name))
        return made[-1]

    yield make
    for journal in made:
        journal.close()


def entry(step, phase=0, sequence=1):
    return trainer_pb2.JournalEntry(step=step, phase=phase, decision=trainer_pb2.DecisionReply(sequence=sequence))


def back(step, to):
    return state_pb2.Rollback(step=step, restored_step=to)


def test_entries_are_numbered_from_one_and_on_disk_at_once(open_journal):
    journal = open_journal()
    for step in (10, 10, 20):
        journal.append(entry(step))
    assert [(e.position, e.step) for e in read_journal(journal.path)] == [(1, 10), (2, 10), (3, 20)]


def test_a_replay_hands_out_what_is_due_and_writes_nothing_twice(open_journal):
    first = open_journal()
    for step, phase in [(10, 0), (10, 1), (20, 0), (20, 1), (30, 0)]:
        first.append(entry(step, phase))
    written = first.path.read_bytes()
    again = open_journal()
    again.start_replay(2)
    assert again.replaying
    for step, phase, expected in [(10, 1, []), (20, 0, [3]), (20, 1, [4]), (25, 0, []), (30, 1, [5])]:
        due = again.due(step, phase)
        assert [e.position for e in due] == expected
        for one in due:
            again.append(one)
    assert not again.replaying
    assert again.path.read_bytes() == written
    again.append(entry(40))
    assert [e.position for e in read_journal(again.path)] == [1, 2, 3, 4, 5, 6]


def test_entries_from_beyond_a_rollback_wait_for_it(open_journal):
    first = open_journal()
    first.append(entry(10))
    first.rolled_back(back(18, 5))
    first.append(entry(10, sequence=2))
    again = open_journal()
    again.start_replay(0)
    assert [e.position for e in again.due(10, 1)] == [1]
    assert again.due(15, 0) == []  # the entry of step 10 that follows belongs to the second time round
    assert again.goes_back_at(17) is None
    assert again.goes_back_at(18) == back(18, 5)
    again.rolled_back(back(18, 5))
    assert [e.decision.sequence for e in again.due(10, 0)] == [2]


@pytest.mark.parametrize("went", [back(12, 5), back(18, 7)])
def test_a_replay_that_goes_back_elsewhere_is_given_up(open_journal, went):
    first = open_journal()
    first.append(entry(10))
    first.rolled_back(back(18, 5))
    first.append(entry(10))
    again = open_journal()
    again.start_replay(1)
    again.rolled_back(went)
    assert not again.replaying
    found = list(read_journal(again.path))
    assert [e.position for e in found] == [1, 2, 3, 4]
    assert found[-1].rollback == went


def test_a_torn_last_line_is_cut_off_before_anything_is_written(open_journal):
    journal = open_journal()
    journal.append(entry(10))
    journal.append(entry(20))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-4])
    again = open_journal()
    again.start_replay(0)
    assert [e.step for e in again.due(99, 1)] == [10]
    again.position = 1
    again.append(entry(30))
    assert [(e.position, e.step) for e in read_journal(again.path)] == [(1, 10), (2, 30)]


def test_a_torn_line_elsewhere_is_named(open_journal):
    journal = open_journal()
    for step in (10, 20, 30):
        journal.append(entry(step))
    lines = journal.path.read_bytes().split(b"\n")
    for damage in (b'{"step": ', b"\xff\xfe", b'{"unheard": 1}'):
        journal.path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
        with pytest.raises(Corrupt, match=r"(?s)journal\.jsonl, line 2, is not a journal entry.*start the run anew"):
            list(read_journal(journal.path))


def test_entries_of_a_second_decision_point_at_a_step_wait_for_it(open_journal):
    first = open_journal()
    for phase in (0, 1, 1, 0, 1):
        first.append(entry(90, phase))
    again = open_journal()
    again.start_replay(0)
    assert [[e.position for e in again.due(90, phase)] for phase in (0, 1, 0, 1)] == [[1], [2, 3], [4], [5]]


def test_a_replay_with_a_gap_is_refused(open_journal):
    journal = open_journal()
    for step in (10, 20, 30, 40):
        journal.append(entry(step))
    lines = journal.path.read_bytes().split(b"\n")
    journal.path.write_bytes(b"\n".join([*lines[:2], *lines[3:]]))
    with pytest.raises(Corrupt, match="goes from entry 2 to entry 4"):
        open_journal().start_replay(1)
    again = open_journal()
    again.start_replay(3)  # a checkpoint of after the gap does not need what is missing
    assert [e.position for e in again.due(99, 1)] == [4]


def test_a_journal_that_ends_before_the_checkpoint_goes_on_behind_it(open_journal):
    open_journal().append(entry(10))
    again = open_journal()
    again.start_replay(3)
    assert not again.replaying
    again.append(entry(50))
    assert [e.position for e in read_journal(again.path)] == [1, 4]


def test_an_earlier_runs_journal_is_refused_and_left_alone(open_journal):
    journal = open_journal()
    journal.append(entry(10))
    written = journal.path.read_bytes()
    with pytest.raises(Conflict, match="is the journal of an earlier run; resume that one, or choose another run id"):
        open_journal().append(entry(10))
    assert journal.path.read_bytes() == written


def test_without_a_directory_positions_still_count(open_journal):
    journal = open_journal("nowhere/journal.jsonl")
    journal.append(entry(1))
    assert journal.position == 1
    assert not journal.path.exists()


def test_a_missing_journal_is_empty(tmp_path):
    assert list(read_journal(tmp_path / "none")) == []
    assert not undone(tmp_path / "none", 0, 5)


def test_undone_asks_what_came_after_the_checkpoint(open_journal):
    journal = open_journal()
    journal.append(entry(10))
    journal.rolled_back(back(18, 5))
    assert undone(journal.path, 1, 10)
    assert not undone(journal.path, 1, 5)
    assert not undone(journal.path, 2, 10)


@pytest.mark.parametrize("failure", ["", "no such kernel"])
def test_a_kernel_is_journaled_by_id_and_loaded_again(failure):
    seed = SeedId("fc1", 2)
    item = Loaded(seed, "a" * 64, None if failure else object(), failure)
    written = write_entry(item, 30, 1, "run")
    assert (written.step, written.phase, written.WhichOneof("event")) == (30, 1, "loaded")
    asked = []

    def load(seed, artifact_id):
        asked.append((seed, artifact_id))
        return item

    assert read_entry(written, load) == item
    assert asked == ([] if failure else [(seed, "a" * 64)])
