"""Time a region's kernels in several tiles on this machine's device, in a process that keeps none of its memory.

    python -m esper.tezzeret.timed FOLDER

FOLDER holds request.json and the region's source. It prints one JSON object: seconds of each tile, or why there are
none. A launch's time is that of both passes and of adding the partial sums.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.artifact.regions import PASSES, Region
from esper.tezzeret.choose import Tile
from esper.tezzeret.kernels import module_of
from esper.tezzeret.search import TimeLeft, Timer, unlimited
from esper.tezzeret.traffic import programs_of
from esper.tezzeret.triton_source import arguments

REQUEST = "request.json"
SIZE = (31, 1021)  # samples, positions: no multiple of 16, for which Triton would compile another kernel than ours
_MOST_ELEMENTS = 1 << 24  # of one tensor, so that timing takes little of a device that somebody trains on
ROUNDS, LAUNCHES = 21, 10
_TIMEOUT_S = 30.0
_AT_WORK = 1


def device_timer(target: str, time_left_s: TimeLeft = unlimited) -> Timer | None:
    """A timer on this machine's device; None where torch sees none. That it is of `target` the timer finds out.

    It takes no longer for a region than `time_left_s` says when it is asked.
    """
    if not torch.cuda.device_count():
        return None

    def timer(region: Region, source: bytes, dtype: torch.dtype, tiles: Sequence[Tile]) -> tuple[Sequence[float], str]:
        limit_s = min(_TIMEOUT_S, max(0.0, time_left_s()))
        return timed(request(region, dtype, tiles, target, size_for(region)), source, limit_s)

    return timer


def timed(asked: Mapping[str, Any], source: bytes, limit_s: float = _TIMEOUT_S) -> tuple[Sequence[float], str]:
    """(seconds of each tile, why there are none) from a process of its own, which has `limit_s`."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / REQUEST).write_text(json.dumps(asked))
        (Path(name) / "region.py").write_bytes(source)
        command = [sys.executable, "-W", "ignore", "-m", __name__, name]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
        except subprocess.TimeoutExpired:
            return [], f"timing took over {limit_s:.3g} s"
    if ran.returncode:
        return [], f"timing failed: {ran.stderr.strip()[-300:]}"
    told = json.loads(ran.stdout.splitlines()[-1])
    return told["seconds"], told["why_not"]


def size_for(region: Region) -> tuple[int, int]:
    """SIZE, with fewer positions where a tensor of it would have more elements than _MOST_ELEMENTS; both odd."""
    samples, positions = SIZE
    return samples, min(positions, _MOST_ELEMENTS // (samples * region.channels)) | 1


def request(
    region: Region, dtype: torch.dtype, tiles: Sequence[Tile], target: str, size: tuple[int, int] = SIZE
) -> dict[str, Any]:
    """What the process needs: each pass's arguments with type and elements, each tile with its programs."""
    programs = [programs_of(replace(region, tile_rows=tile.rows), *size) for tile in tiles]
    return {
        "columns": region.tile_columns,
        "passes": [
            {
                "kernel": region.kernel(direction),
                "tensors": {
                    name: _tensor(name, region, dtype, size, max(programs))
                    for name in arguments(region, direction)
                    if name.endswith("_ptr") and name != "state_ptr"
                },
            }
            for direction in PASSES
        ],
        "products": [list(names) for names in region.products],
        "positions": size[1] if region.by_sample else size[0] * size[1],
        "target": target,
        "tiles": [
            {"programs": number, "rows": tile.rows, "warps": list(tile.warps)}
            for tile, number in zip(tiles, programs, strict=True)
        ],
    }


def _tensor(
    name: str, region: Region, dtype: torch.dtype, size: tuple[int, int], programs: int
) -> tuple[str, int, int]:
    """(type, rows, channels) of a kernel's argument."""
    word, samples, positions = str(dtype).removeprefix("torch."), *size
    kept = dict(region.kept)
    if name in kept:
        return word, samples * positions, kept[name]
    value = int(name[1:].partition("_")[0])
    outside = {one.value: one for one in region.inputs}.get(value) if name[0] in "vd" else None
    channels = outside.channels if outside else region.channels
    if name.endswith("_sums_ptr"):
        return "float32", programs, channels
    if name[0] == "p":
        ranks = {place: pair.rank for pair in region.pairs for place in (pair.down, pair.up)}
        return word, ranks.get(value, 1), region.channels
    return word, samples if outside and outside.per_sample else samples * positions, channels


def calls(asked: Mapping[str, Any], source: Path, device: torch.device) -> list[Callable[[], None]]:
    """For each tile, one launch of both passes with the sums and products of what the backward one leaves."""
    module = module_of(source.read_bytes(), source)
    state = torch.full((1,), _AT_WORK, dtype=torch.uint8, device=device)
    tensors: list[dict[str, Tensor]] = [
        {
            name: torch.rand(rows, channels, device=device).to(getattr(torch, word))
            for name, (word, rows, channels) in one["tensors"].items()
        }
        for one in asked["passes"]
    ]

    def call_of(tile: Mapping[str, Any]) -> Callable[[], None]:
        def call() -> None:
            for one, own, warps in zip(asked["passes"], tensors, tile["warps"], strict=True):
                fixed = {"ROWS": tile["rows"], "COLS": asked["columns"], "num_warps": warps}
                kernel = getattr(module, one["kernel"])
                kernel[(tile["programs"],)](
                    state_ptr=state, active=1 << _AT_WORK, positions=asked["positions"], **own, **fixed
                )
                for name, tensor in own.items():
                    if name.endswith("_sums_ptr"):
                        tensor[: tile["programs"]].sum(0)
            for left, right in asked["products"]:
                tensors[-1][left].T @ tensors[-1][right]

        return call

    return [call_of(tile) for tile in asked["tiles"]]


def why_not(target: str) -> str:
    """Why nothing can be timed for `target` here; empty where it can."""
    if not torch.cuda.is_available():
        return "torch sees no device"
    properties = torch.cuda.get_device_properties(0)
    seen = properties.gcnArchName.partition(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"
    return "" if seen == target else f"the device is {seen}"


def _measured(asked: Mapping[str, Any], source: Path) -> list[float]:
    """Median seconds of each tile's launch; tiles take turns, so that what slows one slows all."""
    each = calls(asked, source, torch.device("cuda", 0))
    for call in each:
        call()
    seconds: list[list[float]] = [[] for _ in each]
    for _ in range(ROUNDS):
        for call, taken in zip(each, seconds, strict=True):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            for _ in range(LAUNCHES):
                call()
            ended.record()
            ended.synchronize()
            taken.append(began.elapsed_time(ended) / 1e3 / LAUNCHES)
    return [statistics.median(taken) for taken in seconds]


if __name__ == "__main__":
    home = Path(sys.argv[1])
    wanted = json.loads((home / REQUEST).read_text())
    reason = why_not(wanted["target"])
    print(json.dumps({"seconds": [] if reason else _measured(wanted, home / "region.py"), "why_not": reason}))
