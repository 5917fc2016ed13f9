"""One spelling per value, and only that spelling is read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.artifact import canonical_json
from esper.errors import InvalidRequest

_texts = st.text(st.characters(exclude_categories=["Cs"]))
_values = st.recursive(
    _texts | st.integers(-(2**63), 2**63), lambda inner: st.lists(inner) | st.dictionaries(_texts, inner), max_leaves=20
)
objects = st.dictionaries(_texts, _values)


@given(objects)
def test_what_is_written_is_read_back(value):
    data = canonical_json.write(value)
    assert canonical_json.read(data, "it", 1 << 20) == value
    assert data == canonical_json.write(canonical_json.read(data, "it", 1 << 20))


@given(objects, st.randoms())
def test_the_order_of_keys_does_not_matter(value, random):
    shuffled = list(value.items())
    random.shuffle(shuffled)
    assert canonical_json.write(dict(shuffled)) == canonical_json.write(value)


@given(objects.filter(bool))
def test_another_spelling_of_the_same_value_is_refused(value):
    for spelled in (json.dumps(value, indent=1), json.dumps(value, sort_keys=True)):
        with pytest.raises(InvalidRequest, match="not in canonical form"):
            canonical_json.read(spelled.encode() + b"\n", "it", 1 << 20)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a":1.5}', "1.5 is no whole number"),
        (b'{"a":1e3}', "1e3 is no whole number"),
        (b'{"a":NaN}', "NaN is no whole number"),
        (b'{"a":true}', "it.a is True"),
        (b'{"a":[null]}', r"it.a\[0\] is None"),
        (b'{"a":1,"a":1}', "not in canonical form"),
        (b'{"b":1,"a":1}', "not in canonical form"),
        (b'{"a": 1}', "not in canonical form"),
        (b'{"a":"\\u0041"}', "not in canonical form"),
        (b'{"a":-0}', "not in canonical form"),
        (b"[1]", "it is a JSON list"),
        (b'{"a"', "is not canonical JSON"),
        (b"", "is not canonical JSON"),
        (b'{"a":"\xff"}', "is not canonical JSON"),
        (b'{"a":"\\ud800"}', "is not canonical JSON"),
        (b'{"a":' + b"[" * 100_000, "is not canonical JSON"),
        (b'{"a":' + b"1" * 5000 + b"}", "is not canonical JSON"),
    ],
)
def test_what_is_wrong_is_named(data, reason):
    with pytest.raises(InvalidRequest, match=reason):
        canonical_json.read(data, "it", 1 << 20)


def test_too_many_bytes_are_refused_before_they_are_read():
    with pytest.raises(InvalidRequest, match="it has 9 bytes; at most 8 are read"):
        canonical_json.read(b'{"a":"b"}', "it", 8)


@pytest.mark.parametrize("value", [{"a": 1.5}, {"a": None}, {"a": b"x"}, {1: "a"}, {"a": "\ud800"}, {"a": {2}}])
def test_types_the_format_does_not_have_are_not_written(value):
    with pytest.raises(InvalidRequest):
        canonical_json.write(value)
