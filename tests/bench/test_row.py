"""Rows: their fields, and when a target counts as met."""

import json
import subprocess

import pytest

from bench.row import ROOT, Target, commit, make_row
from tests.bench.fakes import row

FIELDS = {
    "bench": str,
    "case": str,
    "metric": str,
    "value": float,
    "unit": str,
    "baseline": str,
    "aa_low": float,
    "aa_high": float,
    "target": float,
    "met": bool,
    "device": str,
    "versions": dict,
    "commit": str,
}


def test_a_row_is_one_line_of_json_with_these_fields():
    made = make_row(
        "dormant", "MLP", "step_ratio", 1.004, "ratio", baseline="plain", aa=(0.99, 1.01), target=Target(1.01)
    )
    line = made.json()
    assert "\n" not in line
    fields = json.loads(line)
    assert list(fields) == list(FIELDS)
    assert {name: type(value) for name, value in fields.items()} == FIELDS
    assert {"python", "torch", "esper"} <= fields["versions"].keys()


def test_what_a_row_does_not_have_is_null():
    fields = json.loads(row(value=3).json())
    assert fields["value"] == 3.0
    assert [fields[name] for name in ("aa_low", "aa_high", "target", "met")] == [None] * 4


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "aa", "met"),
    [
        (1.01, 1.01, False, None, True),
        (1.0101, 1.01, False, None, False),
        (1.02, 1.01, False, (0.98, 1.02), True),  # within noise
        (1.04, 1.01, False, (0.98, 1.02), False),  # beyond it
        (1.02, 1.01, False, (0.90, 0.99), False),  # a control below 1 gives nothing away
        (0.9, 0.9, True, None, True),
        (0.89, 0.9, True, None, False),
        (0.89, 0.9, True, (0.97, 1.03), True),
        (0.80, 0.9, True, (0.97, 1.03), False),
        (0.0, 0.0, False, None, True),
        (1.0, 0.0, False, None, False),
        (float("nan"), 1.0, False, None, False),
        (float("nan"), 1.0, True, None, False),
    ],
)
def test_a_target_is_met_up_to_the_noise_of_the_control(value, limit, at_least, aa, met):
    made = make_row("b", "c", "m", value, "u", aa=aa, target=Target(limit, at_least))
    assert made.met is met


def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        assert commit() == ""
    else:
        assert head.stdout.startswith(commit().removesuffix("+"))
