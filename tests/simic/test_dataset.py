"""The dataset: one line per experience, one column per feature, nothing made up."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from esper.api.simic.v1.replay_pb2 import Experience
from esper.simic.dataset import columns, lines, pieces

from .reports import at_noon, report


def experience(number=1, **fields) -> Experience:
    return Experience(position=number, report=report(number, **fields), store_time=at_noon())


def test_a_feature_is_a_column_and_an_absent_one_is_absent():
    row = columns(experience(features={"dead_ratio": 0.25, "gradient_norm": math.nan}))
    assert row["feature.dead_ratio"] == 0.25
    assert "feature.gradient_norm" not in row
    assert not {"gain", "standard_error", "control", "isolated_gain"} & set(row)


def test_what_was_measured_is_there():
    row = columns(
        experience(
            gain=0.02, standard_error=0.005, isolated_gain=0.03, isolated_gains=[0.01, 0.03], isolated_steps=[120, 300]
        )
    )
    assert (row["gain"], row["standard_error"], row["control"]) == (0.02, 0.005, "twin")
    assert (row["isolated_gain.120"], row["isolated_gain.300"]) == (0.01, 0.03)
    assert (row["outcome"], row["site"], row["position"]) == ("CULLED", "fc1", 1)


def test_a_gain_that_is_no_number_leaves_its_columns_out():
    row = columns(experience(gain=math.nan, standard_error=math.inf, isolated_gain=-math.inf))
    assert not {"gain", "standard_error", "isolated_gain"} & set(row)


def test_every_line_is_strict_json():
    (line,) = lines([experience(reason="a\n\u2028 ü", features={"x": math.inf})])
    assert line.count(b"\n") == 1
    assert json.loads(line)["reason"] == "a\n\u2028 ü"


@given(st.lists(st.integers(0, 400), max_size=8), st.integers(1, 700))
def test_pieces_are_the_lines_cut_anywhere(lengths, size_bytes):
    experiences = [experience(i, reason="x" * n) for i, n in enumerate(lengths)]
    found = list(pieces(experiences, size_bytes))
    assert b"".join(found) == b"".join(lines(experiences))
    assert all(0 < len(piece) <= size_bytes for piece in found)
