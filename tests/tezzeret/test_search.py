"""The search of pipeline aggressive: what it tries, what it refuses, what it takes, and that it says why."""

import json
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from esper.artifact.contents import write_graph_file
from esper.artifact.regions import SEARCH, described, read_regions
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter
from esper.blueprint.matching import match
from esper.blueprint.plan import plan
from esper.errors import KernelFault
from esper.karn.templates import TEMPLATES
from esper.tezzeret import search as searching
from esper.tezzeret.choose import Tile, Weighed, best_first, choose
from esper.tezzeret.cost_model import DEVICES
from esper.tezzeret.interpreted import check_interpreted
from esper.tezzeret.kernels import machine_code_files, source_files, triton_version
from esper.tezzeret.regions import find_regions
from esper.tezzeret.resources import Resources, read_resources, why_bad
from esper.tezzeret.search import narrower, search, tiles, weigh
from esper.tezzeret.traffic import programs_of, work_of
from tests.requirements import require
from tests.tezzeret.fusable import BROADCAST, CHAIN

NORMED = Graph(
    (Node("normed", "channel_norm", (INPUT,), ("w", "b")), Node("out", "relu", ("normed",))),
    tuple(Parameter(name, (CHANNELS,), Initialiser.ONES) for name in "wb"),
    "out",
)
WIDE = Interface(Kind.TOKENS, 1024, torch.bfloat16)
FINE = Resources(32, 0, 16, 16)
STANDARD = Tile(1, (4, 4))
PLACES = (Interface(Kind.TOKENS, 64), Interface(Kind.MAP2D, 64, torch.bfloat16))


def found(graph=CHAIN, interface=WIDE):
    concrete = plan(graph, interface)
    regions, _ = find_regions(concrete)
    return concrete, regions


def made(direction, rows, warps, *times, why_out="", resources=FINE):
    return Weighed(direction, rows, warps, resources, times, 1, why_out)


def pair(rows, warps, *times, why_out=""):
    return [made("forward", rows, warps, *times, why_out=why_out), made("backward", rows, warps, *times)]


def test_the_first_of_the_model_is_taken():
    weighed = [*pair(1, 4, 2.0, 40.0), *pair(2, 8, 2.0, 20.0), *pair(4, 8, 2.2, 19.0)]
    ordered = best_first(weighed, STANDARD)
    assert [tile.rows for tile, _ in ordered] == [2, 4, 1]
    chosen = choose(ordered, STANDARD)
    assert (chosen.tile, chosen.by) == (Tile(2, (8, 8)), "model")
    assert "faster than standard's tile by 3" in chosen.reason


def test_each_pass_has_its_own_warps_and_both_the_same_positions():
    weighed = [made("forward", 1, 4, 10.0), made("forward", 1, 8, 5.0), made("backward", 1, 4, 9.0)]
    weighed += [made("backward", 1, 8, 20.0), made("backward", 2, 4, 1.0)]
    assert choose(best_first(weighed, STANDARD), STANDARD).tile == Tile(1, (8, 4))


@pytest.mark.parametrize("faster", [1.0, 0.96])
def test_a_tie_is_standards(faster):
    weighed = [*pair(2, 8, 10.0 * faster), *pair(1, 4, 10.0)]
    chosen = choose(best_first(weighed, STANDARD), STANDARD)
    assert chosen.tile == STANDARD
    assert ("no other is faster" if faster == 1.0 else "which is a tie below 5%") in chosen.reason


def test_what_is_out_is_not_taken_however_fast():
    weighed = [*pair(1, 4, 10.0), *pair(2, 8, 1.0, why_out="it spills")]
    assert choose(best_first(weighed, STANDARD), STANDARD).tile == STANDARD
    without = [*pair(1, 4, 10.0, why_out="it spills"), *pair(2, 8, 90.0)]
    chosen = choose(best_first(without, STANDARD), STANDARD)
    assert (chosen.tile, chosen.reason) == (Tile(2, (8, 8)), "standard's own tile may not be used")
    assert best_first([*pair(1, 4, 10.0, why_out="it spills")], STANDARD) == []


def test_a_timer_has_the_word_on_the_best_and_a_tie_is_still_standards():
    ordered = best_first([*pair(1, 4, 10.0), *pair(2, 8, 5.0), *pair(4, 8, 4.0)], STANDARD)
    two, four = Tile(2, (8, 8)), Tile(4, (8, 8))
    by_time = choose(ordered, STANDARD, {four: 3e-6, two: 1e-6, STANDARD: 2e-6})
    assert (by_time.tile, by_time.by) == (two, "timer")
    assert choose(ordered, STANDARD, {four: 3e-6, two: 1.96e-6, STANDARD: 2e-6}).tile == STANDARD


def test_variants_start_with_standards_and_are_bounded():
    _, (region,) = found()
    tried = tiles(region, 100)
    assert tried[0] == (1, 4)
    assert {(1, 8), (1, 2), (2, 8), (8, 16)} <= set(tried)
    assert len(set(tried)) == len(tried)
    assert max(warps for _, warps in tried) <= 16
    assert tiles(region, 3) == tried[:3]
    assert tiles(region, 0) == tried[:1]
    _, (of_map,) = found(CHAIN, Interface(Kind.MAP2D, 64))
    assert min(rows for rows, _ in tiles(of_map, 100)) == of_map.tile_rows == 16
    _, (several,) = found(CHAIN, Interface(Kind.TOKENS, 64))
    assert min(rows for rows, _ in tiles(several, 100)) == several.tile_rows // 2


def test_bytes_and_arithmetic_of_a_region_by_hand():
    concrete, (region,) = found(CHAIN, Interface(Kind.TOKENS, 8, torch.bfloat16))
    forward, backward = (work_of(region, one, concrete) for one in ("forward", "backward"))
    assert (forward.bytes_per_position, forward.bytes_per_program) == (2 * 8 * 2, 0)
    # reads input and gradient, writes a gradient; sums of w and of b, written and read again in float32
    assert (backward.bytes_per_position, backward.bytes_per_program) == (3 * 8 * 2, 2 * 2 * 8 * 4)
    assert backward.flops_per_position == 3 * forward.flops_per_position > 0
    concrete, regions = found(BROADCAST, Interface(Kind.TOKENS, 8, torch.bfloat16))
    region = next(one for one in regions if any(each.per_sample for each in one.inputs))
    shared = sum(one.channels for one in region.inputs if one.per_sample)
    assert work_of(region, "backward", concrete).bytes_per_program == 8 * (shared + 8 * len(region.parameters))
    rows = region.tile_rows
    assert programs_of(region, 3, rows + 1) == 6
    assert programs_of(replace(region, inputs=region.inputs[:0]), 3, rows + 1) == -(-3 * (rows + 1) // rows)


def test_no_region_of_the_library_moves_fewer_bytes_split_in_two_or_with_a_value_kept():
    """Why whole regions and backward kernels that compute values again are the only lowering that is searched."""
    regions = [(plan(one.graph, i), i) for one in TEMPLATES.values() for i in PLACES if match(one.graph, i)[0]]
    compared = 0
    for concrete, interface in regions:
        for region in find_regions(concrete)[0]:
            whole = _bytes_of(region, concrete)
            value = region.channels * interface.dtype.itemsize
            for size in range(1, len(region.steps)):
                for first in combinations(region.steps, size):
                    parts = (first, tuple(step for step in region.steps if step not in first))
                    split = [described(1, part, concrete, region.tile_rows, region.tile_columns) for part in parts]
                    assert sum(_bytes_of(part, concrete) for part in split) >= 1.6 * whole
                    compared += 1
            read_again = sum(one.channels for one in region.inputs if not one.per_sample) * interface.dtype.itemsize
            assert read_again <= 2 * value  # a kept value is written once and read once
    assert compared >= 20


def _bytes_of(region, concrete):
    return sum(work_of(region, direction, concrete).bytes_per_position for direction in ("forward", "backward"))


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (replace(FINE, load_bytes=8), "its widest load moves 8 bytes, standard's 16"),
        (replace(FINE, store_bytes=8), "its widest store moves 8 bytes, standard's 16"),
        (replace(FINE, load_bytes=32), ""),
    ],
)
def test_accesses_narrower_than_standards_are_out(seen, said):
    assert narrower(seen, FINE) == said


def test_spills_and_what_does_not_fit_are_out():
    concrete, (region,) = found()
    assert why_bad(replace(FINE, spilled="it keeps 8 bytes"), "cuda", wide=False) == "it keeps 8 bytes"
    assert why_bad(replace(FINE, load_bytes=8), "cuda", wide=True).startswith("no access moves 16 bytes")
    weighed = weigh(region, "forward", 4, replace(FINE, shared_bytes=1 << 20), concrete, DEVICES["sm_90"], "")
    assert (weighed.why_out, weighed.times_ns) == ("not one program of it fits a unit", ())
    assert weigh(region, "forward", 4, FINE, concrete, DEVICES["sm_90"], "it spills").why_out == "it spills"
    assert weigh(region, "forward", 4, FINE, concrete, DEVICES["sm_90"], "").times_ns


AMD = """
    global_load_ubyte v1, v[2:3], off
    global_load_dwordx4 v[4:7], v[2:3], off
    buffer_store_short_d16_hi v1, v2, s[0:3], 0 offen
    global_store_dwordx2 v[2:3], v[4:5], off
    .vgpr_count:     52
    .sgpr_spill_count: {}
    .vgpr_spill_count: 0
"""


def test_assembly_of_amd_is_read():
    assert read_resources(b"", AMD.format(0), 64, "hip") == Resources(52, 64, 16, 8)
    assert read_resources(b"", AMD.format(3), 0, "hip").spilled == "[('s', '3')] registers are spilled to memory"
    with pytest.raises(KernelFault, match="does not say how many registers"):
        read_resources(b"", "", 0, "hip")


@pytest.fixture(scope="module")
def triton():
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")


@pytest.fixture(scope="module")
def searched(triton):
    concrete, regions = found(NORMED)
    sources = source_files(regions, concrete)
    return concrete, sources, search(regions, concrete, sources, "sm_90")


def test_a_norms_parameter_sums_make_larger_tiles_worth_it(searched):
    concrete, sources, files = searched
    (region,) = read_regions(files["triton/regions.json"], concrete)
    (told,) = json.loads(files[SEARCH])["regions"]
    assert (told["by"], told["positions"]) == ("model", region.tile_rows)
    assert region.tile_rows > 1
    assert "faster than standard's tile" in told["reason"]
    for direction, warps in zip(("forward", "backward"), told["warps"], strict=True):
        described = json.loads(files[f"triton/region1_{direction}.json"])
        assert described["constants"] == {"COLS": 1024, "ROWS": region.tile_rows}
        assert described["num_warps"] == warps
        assert files[f"triton/region1_{direction}.cubin"][:4] == b"\x7fELF"
        (own,) = [
            k
            for k in told["kernels"]
            if (k["pass"], k["positions"], k["warps"]) == (direction, region.tile_rows, warps)
        ]
        assert not own["why_out"]
        assert own["ns"][1] > 0 < own["registers"]
    usual = machine_code_files(find_regions(concrete)[0], concrete, sources, "sm_90")
    assert usual.keys() == files.keys() - {SEARCH, "triton/regions.json"}
    assert usual["triton/region1_backward.cubin"] != files["triton/region1_backward.cubin"]


def test_a_tile_that_is_not_standards_is_interpreted_as_its_graph(searched):
    _, sources, files = searched
    written = {"graph.json": write_graph_file(NORMED), **sources, **files}
    assert check_interpreted(written, WIDE)["float32"] <= 1e-4


def fake(monkeypatch, why):
    """Compilation that says at once what `why` says of a variant."""

    def compiled(region, direction, module, concrete, target, number):
        return {f"triton/{direction}": b"%d" % region.tile_rows}, FINE, why(region.tile_rows, number)

    monkeypatch.setattr(searching, "compiled", compiled)
    monkeypatch.setattr(searching, "joined_files", lambda *_: {})
    monkeypatch.setattr(searching, "module_of", lambda source, path: None)


def test_where_no_variant_may_be_used_every_reason_is_named(monkeypatch):
    fake(monkeypatch, lambda rows, warps: f"it keeps {rows} bytes on the stack")
    concrete, regions = found()
    with pytest.raises(
        KernelFault, match=r"region 1 for sm_90: no variant may be used \(forward, 1 positions, 4 warps"
    ):
        search(regions, concrete, {regions[0].source: b""}, "sm_90")


def test_where_standards_spills_another_is_taken(monkeypatch):
    fake(monkeypatch, lambda rows, warps: "it keeps 8 bytes on the stack" if rows > 1 or warps == 4 else "")
    concrete, regions = found()
    (told,) = json.loads(search(regions, concrete, {regions[0].source: b""}, "sm_90")[SEARCH])["regions"]
    assert told["positions"] == 1
    assert 4 not in told["warps"]
    assert told["reason"] == "standard's own tile may not be used"


def test_a_timer_is_asked_about_the_best_and_standards(monkeypatch):
    fake(monkeypatch, lambda rows, warps: "")
    concrete, (region,) = found()
    asked: list[Tile] = []

    def timer(of, source, dtype, some):
        assert (of, source, dtype) == (region, b"text", torch.bfloat16)
        asked.extend(some)
        return [1.0 if tile == some[2] else 2.0 for tile in some], ""

    files = search([region], concrete, {region.source: b"text"}, "sm_90", timer)
    (told,) = json.loads(files[SEARCH])["regions"]
    assert len(asked) == 5
    assert STANDARD in asked
    assert told["by"] == "timer"
    seconds = {Tile(one["positions"], tuple(one["warps"])): one["ns"] / 1e9 for one in told["timed"]}
    assert seconds == {tile: 1.0 if tile == asked[2] else 2.0 for tile in asked}
    assert Tile(told["positions"], tuple(told["warps"])) == asked[2]


def test_a_timer_that_cannot_leaves_the_model_its_word_and_says_so(monkeypatch):
    fake(monkeypatch, lambda rows, warps: "")
    concrete, (region,) = found()
    told = [
        json.loads(search([region], concrete, {region.source: b""}, "sm_90", timer)[SEARCH])["regions"][0]
        for timer in (None, lambda *_: ([], "the device is sm_80"))
    ]
    assert told[1]["not_timed"] == "the device is sm_80"
    assert {**told[1], "not_timed": ""} == told[0]
    assert told[0]["timed"] == []
