"""Triton kernels of a blueprint's regions: source text to a module, and to machine code for a target without a GPU."""

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from esper.artifact import canonical_json
from esper.artifact.regions import JOINED, PASSES, REGIONS, WHY_NOT_JOINED, Region, last_region, write_regions
from esper.blueprint.plan import Plan
from esper.errors import KernelFault
from esper.tezzeret.resources import Resources, read_resources, why_bad
from esper.tezzeret.triton_source import arguments, triton_source

MACHINE_CODE = {"sm_80": "cubin", "sm_90": "cubin", "sm_100": "cubin", "gfx942": "hsaco"}
_TRITON_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_ROW = ("state_ptr", "alpha_ptr")  # a seed's row of its table, which starts anywhere
_NUMBERS = {"active": "i64", "positions": "i32", "convex": "i32", "sums": "i32"}
_ACCESS_BYTES = 16
_ELEMENTS_PER_WARP = 256  # 8 of each of 32 threads


@functools.cache
def triton_version() -> str:
    """Empty where Triton is not installed. Does not import it: that takes time which `fast` has no use for."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""


def source_files(regions: Sequence[Region], concrete: Plan) -> dict[str, bytes]:
    """triton/regions.json and the source of every region."""
    files = {region.source: triton_source(region, concrete).encode() for region in regions}
    return {REGIONS: write_regions(regions), **files}


def machine_code_files(
    regions: Sequence[Region], concrete: Plan, sources: Mapping[str, bytes], target: str
) -> dict[str, bytes]:
    """triton/<kernel>.json and .cubin (.hsaco) of both passes of every region, and `joined_files` of the last.

    Raises KernelFault where code spills registers to memory, or moves less than 16 bytes at a time where it could.
    """
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for region in regions:
            module = module_of(sources[region.source], Path(folder) / Path(region.source).name)
            for direction in PASSES:
                made, reason = _usable(region, direction, module, concrete, target, warps(region))
                if reason:
                    why = f"{reason}; this is a fault of the forge, ask for pipeline fast"
                    raise KernelFault(f"{region.kernel(direction)} for {target}: {why}")
                files |= made
            if region is last_region(regions, concrete):
                files |= joined_files(region, module, concrete, target, (warps(region), warps(region)))
    return files


def joined_files(
    region: Region, module: ModuleType, concrete: Plan, target: str, each_warps: tuple[int, int]
) -> dict[str, bytes]:
    """Of the last region, the pair that blends as well; where one of it may not be used, triton/joined.json says why.

    Such a form blends by the op, so that an artifact without the pair lacks nothing but speed.
    """
    files: dict[str, bytes] = {}
    for direction, number in zip(JOINED, each_warps, strict=True):
        try:
            made, reason = _usable(region, direction, module, concrete, target, number)
        except KernelFault as error:
            # which error: its text may hold addresses, and an artifact has none
            made, reason = {}, type(error.__cause__ or error).__name__
        if reason:
            told = {"kernel": region.kernel(direction), "reason": reason}
            return {WHY_NOT_JOINED: canonical_json.write(told)}
        files |= made
    return files


def _usable(
    region: Region, direction: str, module: ModuleType, concrete: Plan, target: str, number: int
) -> tuple[dict[str, bytes], str]:
    """(files below triton/, why they are not to be used) of one kernel; one with a pair may need twice `number` warps.

    ptxas keeps a few words of some of those on the stack, at 96 or 128 registers of the 255 that a thread may have, to
    have more programs at once; with half as many elements of a thread it keeps none.
    """
    made, _, reason = compiled(region, direction, module, concrete, target, number)
    if reason and region.pairs:
        made, _, reason = compiled(region, direction, module, concrete, target, 2 * number)
    return made, reason


def module_of(source: bytes, path: Path) -> ModuleType:
    """The module that `source` is; Triton reads a kernel's text from its file, which must stay until it is compiled."""
    path.write_bytes(source)
    spec = importlib.util.spec_from_file_location(f"esper_generated_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = bytecode
    return module


def compiled(
    region: Region, direction: str, module: ModuleType, concrete: Plan, target: str, num_warps: int
) -> tuple[dict[str, bytes], Resources, str]:
    """(files below triton/, what the compiler says of it, why it is not to be used) of one kernel in region's tile.

    Raises KernelFault where Triton cannot compile it.
    """
    compilation = importlib.import_module("kernels_triton.compilation")
    specialisation = importlib.import_module("kernels_triton.specialisation")
    name = region.kernel(direction)
    signature: dict[str, Any] = {
        argument: _type_of(argument, concrete.interface.dtype) for argument in arguments(region, direction)
    }
    spec = specialisation.Specialisation(
        name,
        getattr(module, name),
        signature,
        {"ROWS": region.tile_rows, "COLS": region.tile_columns},
        tuple(argument for argument in signature if argument.endswith("_ptr") and argument not in _ROW),
        num_warps=num_warps,
    )
    try:
        made = compilation.compile_for(spec, target)
    except Exception as error:  # whatever a compiler raises: the design is fine, its kernel is not
        raise KernelFault(f"{name} for {target}: Triton raised {type(error).__name__}: {str(error)[:500]}") from error
    backend = compilation.TARGETS[target].backend
    binary, assembly = compilation.SUFFIXES[backend]
    shared_bytes = int(made.metadata["shared_bytes"])
    seen = read_resources(made.files[binary], made.files[assembly].decode(), shared_bytes, backend)
    files = {
        f"triton/{name}.{binary}": made.files[binary],
        f"triton/{name}.json": canonical_json.write(made.metadata),
    }
    return files, seen, why_bad(seen, backend, wide=wide(region, concrete))


def warps(region: Region) -> int:
    """Groups of threads in a program."""
    return min(16, max(1, region.tile_rows * region.tile_columns // _ELEMENTS_PER_WARP))


def wide(region: Region, concrete: Plan) -> bool:
    """Whether rows start at multiples of 16 bytes; the places of a map's positions are known at run time only."""
    return region.layout == "rows" and region.channels * concrete.interface.dtype.itemsize % _ACCESS_BYTES == 0


def _type_of(argument: str, dtype: torch.dtype) -> str:
    if argument in _NUMBERS:
        return _NUMBERS[argument]
    if argument == "state_ptr":
        return "*u8"
    return "*fp32" if argument == "alpha_ptr" or argument.endswith("_sums_ptr") else f"*{_TRITON_TYPES[dtype]}"
