"""The chain: whatever is done to a stored entry, verification names the place."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import Corrupt
from esper.urza.ledger import GENESIS, Entry, Head, append, canonical_json, verify


def chain(count: int) -> list[Entry]:
    head, entries = Head(), list[Entry]()
    for number in range(count):
        entry = append(
            head, time_ns=number * 10, action="alias.set", resource_name=f"aliases/{number}", detail={"to": number}
        )
        entries.append(entry)
        head = Head(entry.revision, entry.digest)
    return entries


def test_a_chain_verifies_and_gives_its_head() -> None:
    entries = chain(5)
    assert [entry.revision for entry in entries] == [1, 2, 3, 4, 5]
    assert verify(entries) == Head(5, entries[-1].digest)
    assert verify([]) == Head(0, GENESIS)


def test_it_verifies_in_parts() -> None:
    entries = chain(7)
    assert verify(entries[3:], verify(entries[:3])) == verify(entries)


@given(
    index=st.integers(0, 5),
    field=st.sampled_from(["time_ns", "action", "resource_name", "detail_json", "digest"]),
)
def test_a_changed_field_is_found(index: int, field: str) -> None:
    entries = chain(6)
    old = getattr(entries[index], field)
    entries[index] = replace(entries[index], **{field: old + 1 if isinstance(old, int) else old + "0"})
    with pytest.raises(Corrupt, match=f"revision {index + 1} "):
        verify(entries)


@given(index=st.integers(0, 4))
def test_a_dropped_entry_is_found(index: int) -> None:
    entries = chain(6)
    del entries[index]
    with pytest.raises(Corrupt, match=f"revision {index + 1} is missing"):
        verify(entries)


def test_a_rewritten_entry_breaks_the_one_after_it() -> None:
    entries = chain(4)
    forged = append(Head(1, entries[0].digest), time_ns=10, action="alias.set", resource_name="aliases/x", detail={})
    entries[1] = forged
    with pytest.raises(Corrupt, match="revision 3 has digest"):
        verify(entries)


def test_fields_do_not_run_into_each_other() -> None:
    one = append(Head(), time_ns=1, action="a", resource_name="bc", detail={})
    two = append(Head(), time_ns=1, action="ab", resource_name="c", detail={})
    assert one.digest != two.digest


def test_canonical_json_is_one_form() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"\\u00e9"],"b":1}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))
