"""Triton kernels of a blueprint's regions: source text to a module, and to machine code for a target without a GPU."""

import functools
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from esper.artifact import canonical_json
from esper.artifact.regions import PASSES, REGIONS, Region, write_regions
from esper.blueprint.plan import Plan
from esper.errors import KernelFault
from esper.tezzeret.triton_source import arguments, triton_source

MACHINE_CODE = {"sm_80": "cubin", "sm_90": "cubin", "sm_100": "cubin", "gfx942": "hsaco"}
_TRITON_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_WIDE = {"cuda": r"ld\.global\S*\.(?:v4\.b32|v2\.b64)", "hip": r"(?:global|buffer)_load_dwordx[24]"}
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
    """triton/<kernel>.json and .cubin (.hsaco) of both passes of every region.

    Raises KernelFault where code spills registers to memory, or moves less than 16 bytes at a time where it could.
    """
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for region in regions:
            module = module_of(sources[region.source], Path(folder) / Path(region.source).name)
            for direction in PASSES:
                files |= _compiled(region, direction, module, concrete, target)
    return files


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


def _compiled(region: Region, direction: str, module: ModuleType, concrete: Plan, target: str) -> dict[str, bytes]:
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
        tuple(argument for argument in signature if argument.endswith("_ptr") and argument != "state_ptr"),
        num_warps=warps(region),
    )
    try:
        compiled = compilation.compile_for(spec, target)
    except Exception as error:  # whatever a compiler raises: the design is fine, its kernel is not
        raise KernelFault(f"{name} for {target}: Triton raised {type(error).__name__}: {str(error)[:500]}") from error
    backend = compilation.TARGETS[target].backend
    binary, assembly = compilation.SUFFIXES[backend]
    reason = _why_bad(compiled.files[binary], compiled.files[assembly].decode(), backend)
    if not reason and wide(region, concrete) and not re.search(_WIDE[backend], compiled.files[assembly].decode()):
        reason = f"no access moves {_ACCESS_BYTES} bytes, though its rows are multiples of that"
    if reason:
        raise KernelFault(f"{name} for {target}: {reason}; this is a fault of the forge, ask for pipeline fast")
    files = {f"triton/{name}.{binary}": compiled.files[binary]}
    return files | {f"triton/{name}.json": canonical_json.write(compiled.metadata)}


def warps(region: Region) -> int:
    """Groups of threads in a program."""
    return min(16, max(1, region.tile_rows * region.tile_columns // _ELEMENTS_PER_WARP))


def wide(region: Region, concrete: Plan) -> bool:
    """Whether rows start at multiples of 16 bytes; the places of a map's positions are known at run time only."""
    return region.layout == "rows" and region.channels * concrete.interface.dtype.itemsize % _ACCESS_BYTES == 0


def _type_of(argument: str, dtype: torch.dtype) -> str:
    if argument in ("state_ptr", "active", "positions"):
        return {"state_ptr": "*u8", "active": "i64", "positions": "i32"}[argument]
    return "*fp32" if argument.endswith("_sums_ptr") else f"*{_TRITON_TYPES[dtype]}"


def _why_bad(binary: bytes, assembly: str, backend: str) -> str:
    """Why machine code is not to be used; empty where it is fine."""
    if backend == "hip":
        spilled = re.findall(r"\.([sv])gpr_spill_count: +([1-9]\d*)", assembly)
        return f"{spilled} registers are spilled to memory" if spilled else ""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    used = re.search(r" STACK:(\d+) SHARED:\d+ LOCAL:(\d+) ", told.stdout)
    if used is None:
        return f"cuobjdump did not say what it uses: {told.stdout[:200]}"
    return "" if used.groups() == ("0", "0") else f"it keeps {used[1]} bytes on the stack and {used[2]} in local memory"
