"""Frames: what is packed is unpacked, and nothing else is."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from esper.artifact import frame
from esper.errors import Corrupt

parts = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.binary(max_size=50), max_size=6
)


@given(parts)
def test_what_is_packed_is_unpacked_in_order(given_parts):
    assert list(frame.unpack(frame.pack(given_parts)).items()) == list(given_parts.items())


@given(parts.filter(bool), st.data())
def test_a_frame_cut_short_is_corrupt(given_parts, data):
    packed = frame.pack(given_parts)
    cut = data.draw(st.integers(0, len(packed) - 1))
    try:
        assert frame.unpack(packed[:cut]).items() < given_parts.items()  # cut between two parts
    except Corrupt as error:
        assert "frame" in str(error)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_corrupt(data):
    assume(not data.startswith(frame.pack({})))
    with pytest.raises(Corrupt, match="are no frame"):
        frame.unpack(data)


def test_a_part_twice_a_name_that_is_no_text_and_too_many_parts_are_corrupt():
    one = frame.pack({"a": b"1"})
    head = len(frame.pack({}))
    with pytest.raises(Corrupt, match="part 'a' twice"):
        frame.unpack(one + one[head:])
    with pytest.raises(Corrupt, match="which is no text"):
        frame.unpack(one[:-2] + b"\xff1")
    with pytest.raises(Corrupt, match="over 1024 parts"):
        frame.unpack(frame.pack({str(i): b"" for i in range(1025)}))
