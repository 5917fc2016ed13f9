"""Pipeline aggressive: how many positions a program handles, and by how many warps, for every region and pass.

Each variant is compiled and weighed by the cost model; where a timer is given, it has the word on the best of them. The
kernels have no loop but that over the ranks of a low_rank, which Triton does not overlap: num_stages changes nothing in
them and is not searched. A program holds all channels.
"""

import functools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from esper.artifact import canonical_json
from esper.artifact.regions import MAP, PASSES, REGIONS, SEARCH, Region, last_region, write_regions
from esper.blueprint.plan import Plan
from esper.errors import KernelFault
from esper.tezzeret.choose import Choice, Tile, Weighed, best_first, choose
from esper.tezzeret.cost_model import DEVICES, Device, launch_ns, resident
from esper.tezzeret.kernels import compiled, joined_files, module_of, warps
from esper.tezzeret.resources import Resources
from esper.tezzeret.traffic import SIZES, programs_of, work_of

MOST_KERNELS = 240  # weighed for one artifact
TIMED = 4  # best tiles that a timer is asked about
_TILES = (1, 2, 4, 8)  # times standard's, and half of it
_WARPS = ((1, 1), (2, 1), (1, 2))  # times and divided by standard's elements of a warp
_MOST_WARPS = 16
_USED_UP = "the time of the search was used up"

# timer(region, its source, element type, tiles) -> (seconds of a forward and backward in each tile, why there are none)
Timer = Callable[[Region, bytes, torch.dtype, Sequence[Tile]], tuple[Sequence[float], str]]
_Time = Callable[[Sequence[Tile]], tuple[Sequence[float], str]]
TimeLeft = Callable[[], float]  # seconds; below 0 once they are used up


def unlimited() -> float:
    """The seconds that a search without a limit has left."""
    return math.inf


def search(
    regions: Sequence[Region],
    concrete: Plan,
    sources: Mapping[str, bytes],
    target: str,
    timer: Timer | None = None,
    time_left_s: TimeLeft = unlimited,
) -> dict[str, bytes]:
    """triton/regions.json in the tiles chosen, triton/search.json, machine code and descriptions.

    When no time is left, what was weighed by then is chosen from; standard's own tile comes first, and where it may not
    be used, one that may.
    The same inputs give the same bytes, but for a timer's word, and where the time was used up.
    Raises KernelFault where a region has no variant that may be used, naming each one's reason.
    """
    found, files, record = [], dict[str, bytes](), []
    with tempfile.TemporaryDirectory() as folder:
        for region in regions:
            source = sources[region.source]
            module = module_of(source, Path(folder) / Path(region.source).name)
            most = MOST_KERNELS // (2 * len(regions))
            weighed, made, left_out = _weigh(region, module, concrete, target, most, time_left_s)
            time: _Time | None = timer and functools.partial(timer, region, source, concrete.interface.dtype)
            if time and time_left_s() <= 0:
                time = _not_timed
            choice = _choice(region, weighed, target, time)
            chosen = choice.tile
            for direction, number in zip(PASSES, chosen.warps, strict=True):
                files |= made[direction, chosen.rows, number]
            found.append(replace(region, tile_rows=chosen.rows))
            if region is last_region(regions, concrete):  # in the tile of the plain pair
                files |= joined_files(found[-1], module, concrete, target, chosen.warps)
            record.append(_written(region, weighed, choice) | left_out)
    files[REGIONS] = write_regions(found)
    files[SEARCH] = canonical_json.write({"regions": record, "sizes": [list(size) for size in SIZES]})
    return files


def tiles(region: Region, most: int) -> list[tuple[int, int]]:
    """(positions, warps) of a program that are tried, standard's first, at most `most` of them and at least one."""
    rows = [region.tile_rows * times for times in _TILES]
    if region.layout != MAP and region.tile_rows > 1:
        rows.append(region.tile_rows // 2)
    tried: list[tuple[int, int]] = []
    for one in rows:
        usual = one * warps(region) // region.tile_rows
        for times, part in _WARPS:
            number = usual * times // part
            if 1 <= number <= _MOST_WARPS:
                tried.append((one, number))
    return tried[: max(1, most)]


def _weigh(
    region: Region, module: ModuleType, concrete: Plan, target: str, most: int, time_left_s: TimeLeft
) -> tuple[list[Weighed], dict[tuple[str, int, int], dict[str, bytes]], dict[str, str]]:
    """Every variant of both passes, the files of each that was compiled, and what the record says of those left out."""
    weighed: list[Weighed] = []
    made: dict[tuple[str, int, int], dict[str, bytes]] = {}
    usual: dict[str, Resources] = {}  # by pass, of standard's own tile, which comes first
    left_out: dict[str, str] = {}
    tried = tiles(region, most)
    for place, (rows, number) in enumerate(tried):
        if place and time_left_s() <= 0 and best_first(weighed, _standard(region)):
            left_out = {"not_weighed": f"{len(tried) - place} of {len(tried)} tiles: {_USED_UP}"}
            break
        tiled = replace(region, tile_rows=rows)
        for direction in PASSES:
            try:
                files, seen, why = compiled(tiled, direction, module, concrete, target, number)
            except KernelFault as error:
                # which error: its text may hold addresses, and the record has none
                why = type(error.__cause__ or error).__name__
                weighed.append(Weighed(direction, rows, number, None, (), 0, why))
                continue
            if place == 0:
                usual[direction] = seen
            made[direction, rows, number] = files
            why = why or narrower(seen, usual.get(direction, seen))
            weighed.append(weigh(tiled, direction, number, seen, concrete, DEVICES[target], why))
    weighed.sort(key=lambda one: PASSES.index(one.direction))
    return weighed, made, left_out


def weigh(
    region: Region, direction: str, number: int, seen: Resources, concrete: Plan, device: Device, why_out: str
) -> Weighed:
    """One variant by the cost model. `why_out`: why it may not be used; empty where it may."""
    fit = resident(device, number, seen.registers, seen.shared_bytes)
    why_out = why_out or ("" if fit else "not one program of it fits a unit")
    work = work_of(region, direction, concrete)
    times = (
        tuple(launch_ns(device, work, programs_of(region, *size), region.tile_rows, fit) for size in SIZES)
        if not why_out
        else ()
    )
    return Weighed(direction, region.tile_rows, number, seen, times, fit, why_out)


def narrower(seen: Resources, usual: Resources) -> str:
    """Why its accesses are too narrow beside those of standard's kernel; empty where they are not."""
    for name, its, theirs in (
        ("load", seen.load_bytes, usual.load_bytes),
        ("store", seen.store_bytes, usual.store_bytes),
    ):
        if its < theirs:
            return f"its widest {name} moves {its} bytes, standard's {theirs}"
    return ""


def _choice(
    region: Region,
    weighed: Sequence[Weighed],
    target: str,
    time: _Time | None,
) -> Choice:
    standard = _standard(region)
    ordered = best_first(weighed, standard)
    if not ordered:
        reasons = "; ".join(
            f"{one.direction}, {one.rows} positions, {one.warps} warps: {one.why_out}" for one in weighed if one.why_out
        )
        raise KernelFault(f"region {region.number} for {target}: no variant may be used ({reasons[:1000]})")
    if time is None:
        return choose(ordered, standard)
    known = [tile for tile, _ in ordered]
    asked = known[:TIMED] + [standard for _ in range(standard in known[TIMED:])]
    seconds, why_not = time(asked)
    if why_not:
        return replace(choose(ordered, standard), not_timed=why_not)
    return choose(ordered, standard, dict(zip(asked, seconds, strict=True)))


def _standard(region: Region) -> Tile:
    return Tile(region.tile_rows, (warps(region), warps(region)))


def _not_timed(_tiles: Sequence[Tile]) -> tuple[Sequence[float], str]:
    return [], _USED_UP


def _written(region: Region, weighed: Sequence[Weighed], choice: Choice) -> dict[str, Any]:
    """What search.json says of a region: whole numbers, times in nanoseconds."""
    return {
        "by": choice.by,
        "kernels": [_kernel(one) for one in weighed],
        "not_timed": choice.not_timed,
        "positions": choice.tile.rows,
        "reason": choice.reason,
        "region": region.number,
        "timed": [
            {"ns": round(seconds * 1e9), "positions": tile.rows, "warps": list(tile.warps)}
            for tile, seconds in choice.seconds
        ],
        "warps": list(choice.tile.warps),
    }


def _kernel(one: Weighed) -> dict[str, Any]:
    seen = one.resources
    return {
        "at_once": one.at_once,
        "load_bytes": seen.load_bytes if seen else 0,
        "ns": [round(time) for time in one.times_ns],
        "pass": one.direction,
        "positions": one.rows,
        "registers": seen.registers if seen else 0,
        "shared_bytes": seen.shared_bytes if seen else 0,
        "store_bytes": seen.store_bytes if seen else 0,
        "warps": one.warps,
        "why_out": one.why_out,
    }
