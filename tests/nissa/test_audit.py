"""The audit trail on disk: tampered with by another hand, torn by a crash, on a full disk."""

import json
import sqlite3

import pytest

from esper.api.nissa.v1.observability_pb2 import AuditEntry
from esper.errors import Exhausted
from esper.nissa import audit
from esper.nissa.audit import AuditTrail

from .scenario import at


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.sqlite"


def entry(number: int, run_id: str = "run-1") -> AuditEntry:
    return AuditEntry(
        time=at(number), actor="tamiyo", action="decision.modify", run_id=run_id, detail_json=f"[{number}]"
    )


@pytest.fixture
def trail(path):
    made = AuditTrail(path)
    for number in range(1, 6):
        assert made.append(f"key-{number}", entry(number))
    yield made
    made.close()


def tamper(path, statement, *values):
    """What somebody with sqlite3 and write access does."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(statement, values)
    other.close()


def test_a_key_enters_once(trail):
    assert not trail.append("key-3", entry(9))
    assert trail.last_position == 5
    assert trail.get("key-3").detail_json == "[3]"
    assert trail.get("key-9") is None


def test_entries_are_listed_by_run_and_page(trail):
    trail.append("other", entry(7, "run-2"))
    assert [e.position for e in trail.list()] == [1, 2, 3, 4, 5, 6]
    assert [e.position for e in trail.list(run_id="run-2")] == [6]
    assert [e.position for e in trail.list(after=2, limit=2)] == [3, 4]


def test_an_untouched_trail_is_intact_also_after_reopening(trail, path):
    assert trail.verify() == audit.Verified(5, 0)
    again = AuditTrail(path)
    assert again.verify().intact
    again.append("key-6", entry(6))
    assert again.verify() == audit.Verified(6, 0)
    again.close()


@pytest.mark.parametrize(
    ("statement", "first_bad"),
    [
        ("DELETE FROM records WHERE position = 2", 2),
        ("DELETE FROM records WHERE position = 1", 1),
        ("DELETE FROM records WHERE position = 5", 5),
        ("DELETE FROM records", 1),
        ("UPDATE records SET body = x'00ff' WHERE position = 3", 3),
        ("UPDATE records SET body = 'text' WHERE position = 3", 3),
        ("UPDATE records SET body = (SELECT body FROM records WHERE position = 1) WHERE position = 4", 4),
        ("UPDATE records SET position = 9 WHERE position = 2", 2),
        ("INSERT INTO records (position, key, body) SELECT 6, 'forged', body FROM records WHERE position = 5", 6),
    ],
)
def test_tampering_with_the_file_is_found_and_its_place_named(trail, path, statement, first_bad):
    tamper(path, statement)
    assert trail.verify().first_bad_position == first_bad
    again = AuditTrail(path)
    assert again.verify().first_bad_position == first_bad
    again.close()


def test_a_rewritten_field_is_found(trail, path):
    changed = AuditEntry.FromString(trail._log.get("key-2").SerializeToString())
    changed.actor = "operator"
    tamper(path, "UPDATE records SET body = ? WHERE position = 2", changed.SerializeToString())
    assert trail.verify().first_bad_position == 2


def test_a_head_that_was_changed_or_removed_is_found(trail, path):
    head = path.with_name("audit.sqlite.head")
    head.write_text(json.dumps({"position": 5, "digest": "0" * 64}))
    again = AuditTrail(path)
    assert again.verify().first_bad_position == 5
    again.close()
    head.unlink()
    again = AuditTrail(path)
    assert again.verify().first_bad_position == 1
    again.close()


def test_what_is_added_after_tampering_does_not_hide_it(trail, path):
    tamper(path, "DELETE FROM records WHERE position = 5")
    trail.append("key-6", entry(6))
    assert trail.verify().first_bad_position == 5
    again = AuditTrail(path)
    again.append("key-7", entry(7))
    assert again.verify().first_bad_position == 5
    again.close()


def test_a_process_killed_between_entry_and_head_leaves_an_intact_trail(path, monkeypatch):
    trail = AuditTrail(path)
    trail.append("key-1", entry(1))
    monkeypatch.setattr(audit, "replace_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trail.append("key-2", entry(2))
    trail.close()
    monkeypatch.undo()
    again = AuditTrail(path)
    assert again.verify() == audit.Verified(2, 0)
    assert not again.append("key-2", entry(2))
    again.close()


def test_a_head_that_could_not_be_written_is_written_with_the_next_entry(path, monkeypatch):
    trail = AuditTrail(path)
    monkeypatch.setattr(audit, "replace_text", lambda *_: (_ for _ in ()).throw(Exhausted("disk")))
    with pytest.raises(Exhausted):
        trail.append("key-1", entry(1))
    monkeypatch.undo()
    assert not trail.append("key-1", entry(1))
    assert trail.append("key-2", entry(2))
    assert trail.verify() == audit.Verified(2, 0)
    trail.close()


def test_a_full_disk_adds_nothing(trail):
    (pages,) = trail._log._db.execute("PRAGMA page_count").fetchone()
    trail._log._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Exhausted, match="disk space"):
        trail.append("long", AuditEntry(time=at(1), detail_json="x" * 100_000))
    trail._log._db.execute("PRAGMA max_page_count = 100000")
    assert trail.verify() == audit.Verified(5, 0)
    assert trail.append("key-6", entry(6))
    assert trail.verify().intact
