"""However a child ends, it is known how, what it said before counts, and the worker goes on."""

import json

import pytest

HERE = "tests.urabrask.in_child"


def ended(lab, how: str) -> tuple[list, str]:
    reply = json.loads(lab.call(f"{HERE}:run", how.encode()))
    return reply["frames"], reply["ending"]


def test_a_child_that_ends_well(lab):
    assert ended(lab, "nothing") == ([["1", "one"], ["2", "two"]], "")


@pytest.mark.parametrize(
    ("how", "ending"),
    [
        ("raises", "raised ValueError: no good"),
        ("kills itself", "was killed (SIGKILL); the machine may be out of memory"),
        ("aborts", "was killed by SIGABRT"),
        ("exits", "ended with status 7"),
        ("hangs", "was still at work after 1 s and was ended"),
        ("closes and hangs", "was still at work after 1 s and was ended"),
        ("burns", "used 1 s of processor time, the limit"),
    ],
)
def test_a_child_that_does_not(lab, how, ending):
    assert ended(lab, how) == ([["1", "one"]], ending)


def test_a_child_that_says_too_much_is_cut_off(lab):
    frames, ending = ended(lab, "floods")
    assert frames[0] == ["1", "one"]
    assert ending.startswith("sent over 8388608 bytes")


def test_half_a_frame_is_no_frame(lab):
    frames, _ = ended(lab, "half")
    assert frames == [["1", "one"]]


def test_nothing_is_left_open(lab):
    counts = {
        json.loads(lab.call(f"{HERE}:run", how.encode()))["left"] for how in ("nothing", "raises", "hangs", "nothing")
    }
    assert len(counts) == 1
