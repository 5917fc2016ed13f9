"""Writing into a run's directory, and what is said when it cannot be."""

import errno
import threading
from pathlib import Path

import pytest

from esper.errors import Exhausted, PreconditionFailed
from esper.nissa.files import append_text, read_text, replace_text, write_error


def test_text_is_appended_and_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    append_text(path, "a\n")
    append_text(path, "ü\n")
    assert read_text(path) == "a\nü\n"
    replace_text(path, "b")
    assert read_text(path) == "b"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_what_cannot_be_read_is_none(tmp_path):
    assert read_text(tmp_path / "nothing") is None
    assert read_text(tmp_path) is None
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    assert read_text(tmp_path / "bytes") is None


def test_appending_on_a_full_disk_is_exhausted():
    with pytest.raises(Exhausted, match="/dev/full cannot be written: No space left on device; free some disk space"):
        append_text(Path("/dev/full"), "x")


def test_a_file_in_the_directorys_place_is_a_precondition(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (append_text, replace_text):
        with pytest.raises(PreconditionFailed, match="make its directory writable"):
            write(tmp_path / "file" / "x", "x")


def test_a_failed_replacement_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(Exhausted, match="No space left"):
        replace_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert read_text(path) == "old"


def test_two_threads_that_replace_one_file_leave_one_of_their_texts_whole(tmp_path):
    texts = [letter * 500_000 for letter in "abcd"]
    threads = [threading.Thread(target=replace_text, args=(tmp_path / "file", text)) for text in texts * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_text(tmp_path / "file") in texts
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_quotas_and_sizes_count_as_full_and_the_rest_does_not():
    assert isinstance(write_error(Path("f"), OSError(errno.EDQUOT, "quota")), Exhausted)
    assert isinstance(write_error(Path("f"), OSError(errno.EROFS, "read-only")), PreconditionFailed)
