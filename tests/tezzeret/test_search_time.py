"""A search whose time is used up chooses from what it has weighed, says what it left out, and is never lost whole."""

import json
import math

import pytest

from esper.artifact.regions import PASSES, SEARCH
from esper.tezzeret import search as searching
from esper.tezzeret import timed as timing
from esper.tezzeret.choose import Tile
from esper.tezzeret.search import search, tiles
from esper.tezzeret.timed import device_timer

from .test_search import STANDARD, fake, found

USED_UP = "the time of the search was used up"


class Clock:
    """Seconds left, a second fewer each time somebody looks."""

    def __init__(self, left_s: float) -> None:
        self.left_s = left_s

    def __call__(self) -> float:
        self.left_s -= 1.0
        return self.left_s


def told(monkeypatch, left_s, why=lambda rows, warps: "", timer=None):
    """What search.json says of the one region, and the files."""
    fake(monkeypatch, why)
    concrete, (region,) = found()
    files = search([region], concrete, {region.source: b""}, "sm_90", timer, Clock(left_s))
    (said,) = json.loads(files[SEARCH])["regions"]
    return said, files, tiles(region, 1000)


def weighed(said):
    return [(one["pass"], one["positions"], one["warps"]) for one in said["kernels"]]


@pytest.mark.parametrize("left_s", [1, 0, -100])
def test_standards_own_tile_is_weighed_whatever_the_time(monkeypatch, left_s):
    said, files, tried = told(monkeypatch, left_s)
    assert weighed(said) == [(direction, STANDARD.rows, STANDARD.warps[0]) for direction in PASSES]
    assert (said["positions"], tuple(said["warps"])) == STANDARD
    assert said["not_weighed"] == f"{len(tried) - 1} of {len(tried)} tiles: {USED_UP}"
    assert {f"triton/{direction}" for direction in PASSES} <= files.keys()


def test_what_was_weighed_in_time_is_weighed_for_both_passes(monkeypatch):
    said, _, tried = told(monkeypatch, 4)
    assert weighed(said) == [(direction, *tile) for direction in PASSES for tile in tried[:4]]
    assert said["not_weighed"] == f"{len(tried) - 4} of {len(tried)} tiles: {USED_UP}"


def test_with_time_enough_it_is_the_search_without_a_limit(monkeypatch):
    _, limited, _ = told(monkeypatch, 1e6)
    _, unlimited, _ = told(monkeypatch, math.inf)
    concrete, (region,) = found()
    assert limited == unlimited == search([region], concrete, {region.source: b""}, "sm_90")
    assert b"not_weighed" not in limited[SEARCH]


def test_where_standards_spills_it_goes_on_to_one_that_does_not(monkeypatch):
    said, _, tried = told(monkeypatch, 0, lambda rows, warps: "" if rows == 2 else "it keeps 8 bytes on the stack")
    first = next(place for place, (rows, _) in enumerate(tried) if rows == 2)
    assert (said["positions"], said["warps"]) == (2, [tried[first][1]] * 2)
    assert said["not_weighed"] == f"{len(tried) - first - 1} of {len(tried)} tiles: {USED_UP}"


def test_a_timer_is_not_asked_when_no_time_is_left(monkeypatch):
    def timer(*_):
        raise AssertionError("asked")

    said, _, _ = told(monkeypatch, 3, timer=timer)
    assert (said["by"], said["not_timed"], said["timed"]) == ("model", USED_UP, [])


def test_every_region_after_that_has_standards_tile(monkeypatch):
    fake(monkeypatch, lambda rows, warps: "")
    monkeypatch.setattr(searching, "write_regions", lambda regions: b"")
    concrete, (region,) = found()
    files = search([region] * 3, concrete, {region.source: b""}, "sm_90", None, Clock(2))
    one, *rest = json.loads(files[SEARCH])["regions"]
    assert len(one["kernels"]) == 2 * len(PASSES)
    assert [weighed(said) for said in rest] == [weighed({"kernels": one["kernels"][::2]})] * 2


@pytest.mark.parametrize(("left_s", "limit_s"), [(1e6, 30.0), (4.0, 3.0), (-3.0, 0.0)])
def test_timing_takes_no_longer_than_what_is_left(monkeypatch, left_s, limit_s):
    limits = []
    monkeypatch.setattr(timing.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(timing, "timed", lambda asked, source, limit: limits.append(limit) or ([], "it was not run"))
    _, (region,) = found()
    timer = device_timer("sm_90", Clock(left_s))
    assert timer is not None
    assert timer(region, b"", found()[0].interface.dtype, [Tile(1, (4, 4))])[1] == "it was not run"
    assert limits == [limit_s]
