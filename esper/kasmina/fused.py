"""An artifact's Triton kernels as a form, where the device is what they were compiled for. No source is ever run."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from esper.artifact import canonical_json
from esper.artifact.contents import Contents
from esper.artifact.fused import FusedForm
from esper.artifact.regions import (
    JOINED,
    MAX_METADATA_BYTES,
    PASSES,
    REGIONS,
    Region,
    last_region,
    read_regions,
)
from esper.blueprint.plan import plan
from esper.errors import Corrupt, InvalidRequest, Unavailable
from esper.ops import cubin

# A site whose seed is dormant does not call its form at all, so that kernels launched from here are always at work.
_AT_WORK = 1


def fused_form(contents: Contents, files: Mapping[str, bytes], device: torch.device) -> tuple[FusedForm | None, str]:
    """(the form, "") or (None, why these kernels are of no use on `device`). `files` are verified.

    Raises Corrupt where the files do not fit each other or the graph.
    """
    target = contents.body.target
    if REGIONS not in files:
        return None, f"pipeline {contents.body.pipeline} makes no kernels"
    concrete = plan(contents.graph, contents.body.interface)
    regions = read_regions(files[REGIONS], concrete)
    if not regions:
        return None, "the blueprint has nothing to fuse"
    if device.type != "cuda" or torch.version.hip or not target.startswith("sm_"):
        return None, f"the kernels are for {target} and the device is {device}"
    wanted = [(region, direction) for region in regions for direction in PASSES]
    joined = joined_kernels(last_region(regions, concrete), files)
    try:
        kernels = {
            region.kernel(direction): cubin.load_image(*_kernel(region, direction, files, target), device)
            for region, direction in (*wanted, *joined)
        }
    except Unavailable as error:
        return None, str(error)
    state = torch.full((1,), _AT_WORK, dtype=torch.uint8, device=device)
    launch = _Launch(kernels)
    dtype = contents.body.interface.dtype
    return FusedForm(concrete, regions, launch, state, 1 << _AT_WORK, dtype, joins=bool(joined)), ""


def joined_kernels(last: Region | None, files: Iterable[str]) -> tuple[tuple[Region, str], ...]:
    """The pair that blends, of the region that makes the graph's last value: both of it, or neither.

    An artifact may be without: it was made before there were such pairs, or they spilled. The body lists its files, so
    that which of the two it is was signed. Raises Corrupt where another region has some.
    """
    seen = {name.removeprefix("triton/").partition(".")[0] for name in files if "_joined_" in name}
    pair = () if last is None else tuple((last, direction) for direction in JOINED)
    if stray := sorted(seen - {region.kernel(direction) for region, direction in pair}):
        raise Corrupt(f"kernel {stray[0]} is of a region that does not make the graph's last value")
    return pair if seen else ()


class _Launch:
    """Launches on the current stream."""

    def __init__(self, kernels: Mapping[str, cubin.Kernel]) -> None:
        self._kernels = kernels

    def __call__(self, name: str, programs: int, arguments: Mapping[str, Tensor | int]) -> None:
        self._kernels[name].launch((programs, 1, 1), **arguments)


def _kernel(region: Region, direction: str, files: Mapping[str, bytes], target: str) -> tuple[dict[str, Any], bytes]:
    """Description and machine code of one kernel. Raises Corrupt where they are missing or not this region's."""
    name = region.kernel(direction)
    described, image = f"triton/{name}.json", f"triton/{name}.cubin"
    if missing := [path for path in (described, image) if path not in files]:
        raise Corrupt(f"file {missing[0]!r} is missing; region {region.number} needs it")
    try:
        metadata: dict[str, Any] = canonical_json.read(files[described], described, MAX_METADATA_BYTES)
    except InvalidRequest as error:
        raise Corrupt(str(error)) from error
    tile = {"ROWS": region.tile_rows, "COLS": region.tile_columns}
    seen = {key: metadata.get(key) for key in ("name", "target", "constants")}
    if seen != {"name": name, "target": target, "constants": tile}:
        raise Corrupt(f"{described} is of {seen}; the region is {name} for {target} with tile {tile}")
    return metadata, files[image]
