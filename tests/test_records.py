"""The record log: once per key, in order, filtered, paged; and what it says when the file is not what it should be."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.api.tolaria.v1.trainer_pb2 import Note
from esper.errors import Corrupt, Exhausted, PreconditionFailed, Unavailable
from esper.records import RecordLog


def open_log(path: Path) -> RecordLog[Note]:
    return RecordLog(path, Note, key=lambda note: note.text, columns={"level": lambda note: note.level})


@pytest.fixture
def log(tmp_path):
    made = open_log(tmp_path / "deep" / "notes.sqlite")
    yield made
    made.close()


def note(text, level="info"):
    return Note(level=level, source="test", text=text)


def test_positions_count_from_one_and_a_key_is_stored_once(log):
    assert log.last_position == 0
    assert log.append(note("a")) == (1, False)
    assert log.append(note("b")) == (2, False)
    assert log.append(note("a", "error")) == (1, True)
    assert log.last_position == 2
    assert log.get("a") == note("a")
    assert log.get("c") is None


def test_a_key_given_at_append_takes_the_place_of_the_logs_own(log):
    assert log.append(note("a"), "one") == (1, False)
    assert log.append(note("a"), "two") == (2, False)
    assert log.append(note("b"), "one") == (1, True)
    assert log.get("two") == note("a")


def test_lists_are_filtered_bounded_and_ordered(log):
    for number in range(10):
        log.append(note(str(number), ("info", "warning", "error")[number % 3]))
    assert [p for p, _ in log.list({"level": "info"})] == [1, 4, 7, 10]
    assert [p for p, _ in log.list({"level": ["info", "error"]}, after=3, limit=3)] == [4, 6, 7]
    assert [p for p, _ in log.list(before=4, newest_first=True)] == [3, 2, 1]
    assert log.list({"level": []}) == []
    assert [m.text for m in log.all({"level": "warning"})] == ["1", "4", "7"]
    assert [p for p, _ in log.after(8)] == [9, 10]
    assert [p for p, _ in log.raw(8)] == [9, 10]
    assert "3" in log and "10" not in log
    assert list(log.raw())[1] == (2, note("1", "warning").SerializeToString())


@given(texts=st.lists(st.text(min_size=1, max_size=3), max_size=30))
def test_what_is_read_is_what_was_first_stored_under_each_key(texts, tmp_path_factory):
    log = open_log(tmp_path_factory.mktemp("log") / "notes.sqlite")
    for text in texts:
        log.append(note(text))
    assert [m.text for m in log.all()] == list(dict.fromkeys(texts))
    log.close()


def test_more_than_a_page_is_read_whole(log):
    log._db.execute("BEGIN")
    for number in range(1201):
        log.append(note(str(number)))
    log._db.execute("COMMIT")
    assert [m.text for m in log.all()] == [str(n) for n in range(1201)]
    assert [p for p, _ in log.raw()] == list(range(1, 1202))


def test_another_process_reads_while_one_writes(log):
    log.append(note("a"))
    program = (
        "import sys\nfrom pathlib import Path\nfrom esper.api.tolaria.v1.trainer_pb2 import Note\n"
        "from esper.records import RecordLog\n"
        "log = RecordLog(Path(sys.argv[1]), Note, key=None, columns={'level': lambda n: n.level})\n"
        "print([m.text for m in log.all()])"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(log.path)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['a']"


def test_a_process_that_is_killed_loses_nothing_that_was_appended(tmp_path):
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom esper.api.tolaria.v1.trainer_pb2 import Note\n"
        "from esper.records import RecordLog\n"
        "log = RecordLog(Path(sys.argv[1]), Note, key=lambda n: n.text)\n"
        "for i in range(100): log.append(Note(level='info', text=str(i)))\n"
        "os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "notes.sqlite"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    log = RecordLog(path, Note, key=lambda n: n.text)
    assert log.last_position == 100
    log.close()


def test_a_full_disk_is_exhausted_and_nothing_is_half_stored(log):
    log.append(note("a"))
    (pages,) = log._db.execute("PRAGMA page_count").fetchone()
    log._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Exhausted, match="free some disk space"):
        log.append(note("b" * 100_000))
    assert log.last_position == 1
    log._db.execute("PRAGMA max_page_count = 100000")
    assert log.append(note("b" * 100_000)) == (2, False)


def test_a_log_held_by_another_is_unavailable_not_full(log):
    log._db.execute("PRAGMA busy_timeout=10")
    other = sqlite3.connect(log.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="another process"):
        log.append(note("a"))
    other.execute("ROLLBACK")
    other.close()
    assert log.append(note("a")) == (1, False)


def test_a_file_that_is_no_database_is_corrupt(tmp_path):
    path = tmp_path / "notes.sqlite"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(Corrupt, match="is damaged"):
        open_log(path)


def test_a_message_that_does_not_parse_is_corrupt_and_named(log):
    log.append(note("a"))
    log.append(note("b"))
    log._db.execute("UPDATE records SET body = x'ff' WHERE position = 2")
    with pytest.raises(Corrupt, match="position 2 is no Note"):
        list(log.all())
    assert [p for p, _ in log.raw()] == [1, 2]


def test_another_version_is_refused(log):
    log._db.execute("PRAGMA user_version = 9")
    with pytest.raises(PreconditionFailed, match="is of version 9, this release reads 1"):
        open_log(log.path)


def test_columns_the_file_was_made_without_are_refused_by_name(log):
    with pytest.raises(PreconditionFailed, match="without the columns source"):
        RecordLog(log.path, Note, key=None, columns={"source": lambda n: n.source})


def test_an_unknown_column_is_refused(log):
    with pytest.raises(PreconditionFailed, match="no column 'mood'; it has level"):
        log.list({"mood": "good"})


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreconditionFailed, match="cannot be made"):
        open_log(tmp_path / "file" / "notes.sqlite")


def test_a_directory_in_the_files_place_is_refused(tmp_path):
    (tmp_path / "notes.sqlite").mkdir()
    with pytest.raises(PreconditionFailed, match="writable"):
        open_log(tmp_path / "notes.sqlite")
