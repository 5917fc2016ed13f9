"""What a compiler says of a kernel's machine code: registers, shared memory, spills, the width of its accesses."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from esper.errors import KernelFault

# Bytes that the widest load must have where rows are multiples of 16 bytes.
LEAST_LOAD_BYTES = {"cuda": 16, "hip": 8}
_PTX_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[a-z_:]+\w*)*?(?:\.v([248]))?\.[busf](8|16|32|64)\b")
_AMD_ACCESS = re.compile(r"\b(?:global|buffer)_(load|store)_(\w+)")
_AMD_BYTES = {"byte": 1, "ubyte": 1, "sbyte": 1, "short": 2, "ushort": 2, "sshort": 2, "dword": 4}


@dataclass(frozen=True, slots=True)
class Resources:
    """`registers` of a thread, `shared_bytes` of a program, widest load and store of a thread from global memory.

    `spilled`: what it keeps in memory for want of registers, in words; empty where there is nothing.
    """

    registers: int
    shared_bytes: int
    load_bytes: int
    store_bytes: int
    spilled: str = ""


def read_resources(binary: bytes, assembly: str, shared_bytes: int, backend: str) -> Resources:
    """Of one kernel's machine code and assembly. Raises KernelFault where the tools do not say."""
    registers, spilled = (_amd if backend == "hip" else _nvidia)(binary, assembly)
    widths = _amd_widths(assembly) if backend == "hip" else _ptx_widths(assembly)
    return Resources(registers, shared_bytes, widths["load"], widths["store"], spilled)


def why_bad(seen: Resources, backend: str, *, wide: bool) -> str:
    """Why the code is not to be used; empty where it is fine. `wide`: its rows are multiples of 16 bytes."""
    if seen.spilled:
        return seen.spilled
    if wide and seen.load_bytes < LEAST_LOAD_BYTES[backend]:
        return f"no access moves {LEAST_LOAD_BYTES[backend]} bytes, though its rows are multiples of that"
    return ""


def _nvidia(binary: bytes, _assembly: str) -> tuple[int, str]:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        try:
            told = subprocess.run(
                [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise KernelFault(f"{tool.name} did not read a kernel ({type(error).__name__})") from error
    used = re.search(r" REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+) ", told.stdout)
    if used is None:
        raise KernelFault(f"cuobjdump did not say what a kernel uses: {told.stdout[:200]}")
    kept = used.groups()[1:] != ("0", "0")
    return int(used[1]), f"it keeps {used[2]} bytes on the stack and {used[3]} in local memory" if kept else ""


def _amd(_binary: bytes, assembly: str) -> tuple[int, str]:
    """Registers: vector registers, of which accumulation registers are a part on gfx942."""
    used = re.search(r"\.vgpr_count: +(\d+)", assembly)
    if used is None:
        raise KernelFault("the assembly does not say how many registers a kernel uses")
    spilled = re.findall(r"\.([sv])gpr_spill_count: +([1-9]\d*)", assembly)
    return int(used[1]), f"{spilled} registers are spilled to memory" if spilled else ""


def _ptx_widths(assembly: str) -> dict[str, int]:
    widths = {"load": 0, "store": 0}
    for kind, vector, bits in _PTX_ACCESS.findall(assembly):
        name = "load" if kind == "ld" else "store"
        widths[name] = max(widths[name], int(vector or 1) * int(bits) // 8)
    return widths


def _amd_widths(assembly: str) -> dict[str, int]:
    widths = {"load": 0, "store": 0}
    for name, unit in _AMD_ACCESS.findall(assembly):
        word, _, times = unit.partition("x")
        widths[name] = max(widths[name], _AMD_BYTES.get(word.partition("_")[0], 0) * int(times or 1))
    return widths
