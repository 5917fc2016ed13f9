"""The audit chain: whole, it holds; with anything changed, dropped, swapped or added, the first bad entry is named."""

import math

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from esper.api.nissa.v1.observability_pb2 import AuditEntry
from esper.nissa.chain import GENESIS, Head, canonical_json, chained, digest, verify

ENTRIES = st.builds(
    AuditEntry,
    time=st.builds(Timestamp, seconds=st.integers(0, 4_000_000_000), nanos=st.integers(0, 999_999_999)),
    actor=st.sampled_from(["tamiyo", "operator", ""]),
    action=st.text(max_size=5),
    run_id=st.sampled_from(["", "run-1"]),
    detail_json=st.text(max_size=10),
)
TRAILS = st.lists(ENTRIES, min_size=1, max_size=8)


def chain(entries):
    head, stored = Head(), []
    for entry in entries:
        entry = chained(head, entry)
        stored.append((entry.position, entry.SerializeToString()))
        head = Head(entry.position, entry.digest)
    return stored, head


@given(TRAILS)
def test_a_chain_holds(entries):
    stored, head = chain(entries)
    assert verify(stored, head).intact
    assert verify(stored, head).entries == len(entries)


def test_an_empty_chain_holds():
    assert verify([], Head()).intact


@given(TRAILS, st.data())
def test_a_changed_field_is_named(entries, data):
    stored, head = chain(entries)
    at = data.draw(st.integers(0, len(stored) - 1))
    entry = AuditEntry.FromString(stored[at][1])
    field = data.draw(st.sampled_from(["actor", "action", "run_id", "detail_json", "digest"]))
    setattr(entry, field, getattr(entry, field) + "x")
    stored[at] = (stored[at][0], entry.SerializeToString())
    assert verify(stored, head).first_bad_position == at + 1


@given(TRAILS, st.data())
def test_an_entry_that_was_changed_with_its_digest_breaks_the_chain_behind_it_or_the_head(entries, data):
    stored, head = chain(entries)
    at = data.draw(st.integers(0, len(stored) - 1))
    entry = AuditEntry.FromString(stored[at][1])
    entry.actor += "x"
    previous = AuditEntry.FromString(stored[at - 1][1]).digest if at else GENESIS
    entry.digest = digest(previous, entry)
    stored[at] = (stored[at][0], entry.SerializeToString())
    assert verify(stored, head).first_bad_position == min(at + 2, len(stored))


@given(TRAILS, st.data())
def test_a_dropped_entry_is_named(entries, data):
    stored, head = chain(entries)
    at = data.draw(st.integers(0, len(stored) - 1))
    del stored[at]
    assert verify(stored, head).first_bad_position == at + 1


@given(st.lists(ENTRIES, min_size=2, max_size=8), st.data())
def test_swapped_entries_are_named(entries, data):
    stored, head = chain(entries)
    one, other = sorted(data.draw(st.permutations(range(len(stored))))[:2])
    stored[one], stored[other] = (stored[one][0], stored[other][1]), (stored[other][0], stored[one][1])
    assert verify(stored, head).first_bad_position == one + 1


@given(TRAILS)
def test_forged_entries_behind_the_head_are_named(entries):
    stored, head = chain(entries)
    forged = chained(head, AuditEntry(actor="nobody"))
    assert verify([*stored, (forged.position, forged.SerializeToString())], head).first_bad_position == len(stored) + 1


@pytest.mark.parametrize("body", [b"\xff\xff", "text", None])
def test_what_is_no_entry_at_all_is_named(body):
    stored, head = chain([AuditEntry(actor="a"), AuditEntry(actor="b")])
    stored[1] = (2, body)
    assert verify(stored, head).first_bad_position == 2


def test_a_position_inside_the_entry_counts_too():
    stored, head = chain([AuditEntry(actor="a")])
    assert verify([(7, stored[0][1])], head).first_bad_position == 1


def test_json_has_one_spelling_and_no_infinity():
    assert canonical_json({"b": math.inf, "a": [1.5, math.nan, {"ü": True}]}) == (
        '{"a":[1.5,null,{"\\u00fc":true}],"b":null}'
    )
