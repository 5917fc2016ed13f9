"""events.jsonl: each event once and in order, whatever state the file was left in."""

import errno
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.errors import Exhausted, PreconditionFailed
from esper.nissa import jsonl
from esper.nissa.events import EventLog
from esper.nissa.files import append_text
from esper.nissa.jsonl import JsonLines, line_of

from .feed import recorded

EVENTS = recorded()
WHOLE = "".join(line_of(event) for event in EVENTS)


def filled(path, count=None):
    log = EventLog(path)
    for number, event in enumerate(EVENTS[:count]):
        log.append(event, str(number))
    return log


@pytest.fixture
def log(tmp_path):
    made = filled(tmp_path / "log.sqlite")
    yield made
    made.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "events.jsonl"


def test_lines_follow_the_log_event_by_event(tmp_path, path):
    log, lines = filled(tmp_path / "log.sqlite", 0), JsonLines(path)
    for number, event in enumerate(EVENTS):
        log.append(event, str(number))
        lines.bring_up_to_date(log)
        assert path.read_text() == "".join(line_of(e) for e in EVENTS[: number + 1])
    log.close()


def test_nothing_is_written_twice(log, path):
    lines = JsonLines(path)
    for _ in range(3):
        lines.bring_up_to_date(log)
    JsonLines(path).bring_up_to_date(log)
    assert path.read_text() == WHOLE


def test_more_than_a_chunk_is_written_whole(log, path, monkeypatch):
    monkeypatch.setattr(jsonl, "_CHUNK_LINES", 3)
    JsonLines(path).bring_up_to_date(log)
    assert path.read_text() == WHOLE


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(WHOLE.encode())))
def test_wherever_the_file_was_torn_it_is_repaired(cut):
    with TemporaryDirectory() as folder:
        log, path = filled(Path(folder) / "log.sqlite"), Path(folder) / "events.jsonl"
        path.write_bytes(WHOLE.encode()[:cut])
        JsonLines(path).bring_up_to_date(log)
        assert path.read_text() == WHOLE
        assert not list(Path(folder).glob("events.*.jsonl"))
        log.close()


def test_a_file_of_another_run_is_set_aside_and_kept(log, path):
    append_text(path, '{"kind": "hello"}\n')
    JsonLines(path).bring_up_to_date(log)
    assert path.read_text() == WHOLE
    assert path.with_name("events.1.jsonl").read_text() == '{"kind": "hello"}\n'
    path.write_text("again\n")
    JsonLines(path).bring_up_to_date(log)
    assert path.with_name("events.2.jsonl").read_text() == "again\n"


def test_a_file_that_says_more_than_the_log_is_set_aside(tmp_path, path):
    append_text(path, WHOLE)
    log = filled(tmp_path / "log.sqlite", 2)
    JsonLines(path).bring_up_to_date(log)
    assert path.read_text() == "".join(line_of(event) for event in EVENTS[:2])
    assert path.with_name("events.1.jsonl").read_text() == WHOLE
    log.close()


def test_a_changed_line_in_the_middle_is_noticed_at_the_next_start(log, path):
    JsonLines(path).bring_up_to_date(log)
    path.write_text(WHOLE.replace('"heuristic"', '"Heuristic"', 1))
    JsonLines(path).bring_up_to_date(log)
    assert path.read_text() == WHOLE


def test_a_file_that_is_deleted_while_the_run_goes_on_is_written_anew(tmp_path, path):
    log, lines = filled(tmp_path / "log.sqlite", 5), JsonLines(path)
    lines.bring_up_to_date(log)
    path.unlink()
    log.append(EVENTS[5], "5")
    lines.bring_up_to_date(log)
    assert path.read_text() == "".join(line_of(event) for event in EVENTS[:6])
    log.close()


def test_a_full_disk_leaves_half_a_line_and_the_next_try_mends_it(log, path, monkeypatch):
    def half(path, text):
        append_text(path, text[: len(text) // 2])
        raise Exhausted("disk")

    lines = JsonLines(path)
    monkeypatch.setattr(jsonl, "append_text", half)
    for _ in range(2):
        with pytest.raises(Exhausted):
            lines.bring_up_to_date(log)
    monkeypatch.setattr(jsonl, "append_text", append_text)
    lines.bring_up_to_date(log)
    assert path.read_text() == WHOLE


def test_a_directory_that_cannot_be_written_is_said(log, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreconditionFailed, match="cannot be written"):
        JsonLines(tmp_path / "file" / "events.jsonl").bring_up_to_date(log)


def test_a_file_that_cannot_be_cut_is_said(log, path, monkeypatch):
    append_text(path, WHOLE[:10])

    def refuse(path, size):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.truncate", refuse)
    with pytest.raises(PreconditionFailed, match="Read-only"):
        JsonLines(path).bring_up_to_date(log)


def test_line_n_is_position_n(log, path):
    JsonLines(path).bring_up_to_date(log)
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == [event.WhichOneof("event") for event in log.after(0)]
    assert [event.position for event in log.after(0)] == list(range(1, len(kinds) + 1))
