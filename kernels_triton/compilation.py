"""One specialisation compiled for one target, without a device: machine code, assembly, and what a launcher must know.

Line information is left out: it holds paths and line numbers, and would make bytes differ from checkout to checkout.
"""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels_triton.specialisation import Specialisation

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SUFFIXES = {"cuda": ("cubin", "ptx"), "hip": ("hsaco", "amdgcn")}  # machine code, assembly
BYTES = {"i32": 4, "i64": 8, "fp32": 4, "fp64": 8}  # of the scalars that launchers pass
# Triton appends two pointers to every kernel's parameters. These kernels use neither: both are null.
SCRATCH = ("global_scratch", "profile_scratch")


@dataclass(frozen=True, slots=True)
class Compiled:
    """`files`: suffix -> bytes, machine code and assembly. `metadata` holds only what JSON can."""

    files: dict[str, bytes]
    metadata: dict[str, object]


def compile_for(spec: Specialisation, target: str) -> Compiled:
    """`spec` for `target`, a key of TARGETS. Raises ValueError where the specialisation does not fit its kernel."""
    if reason := why_unfit(spec):
        raise ValueError(f"{spec.name}: {reason}")
    kernel, gpu = spec.kernel, TARGETS[target]
    signature = {argument: spec.signature.get(argument, "constexpr") for argument in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=spec.constants, attrs=_attributes(spec))
    # a cache of its own: code made with line information elsewhere must not be taken for this
    with tempfile.TemporaryDirectory() as cache, knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = cache
        knobs.compilation.disable_line_info = True
        built = triton.compile(source, target=gpu, options={"num_warps": spec.num_warps})
    if reason := why_not_launchable(built.metadata):
        raise ValueError(f"{spec.name} for {target}: {reason}")
    binary, assembly = SUFFIXES[gpu.backend]
    text = built.asm[assembly]
    metadata = {
        "name": spec.name,
        "kernel": built.metadata.name,
        "target": target,
        # what the machine code is for: sm_90a runs on compute capability 9.0 alone
        "arch": re.search(r"^\.target (sm_\w+)", text, re.M)[1] if gpu.backend == "cuda" else target,
        "warp_size": gpu.warp_size,
        "num_warps": spec.num_warps,
        "num_stages": built.metadata.num_stages,
        "shared_bytes": built.metadata.shared,
        "parameters": parameters(spec),
        "constants": {name: value if isinstance(value, int) else str(value) for name, value in spec.constants.items()},
        "versions": {"triton": triton.__version__} | ({"ptxas": _ptxas(gpu.arch)} if gpu.backend == "cuda" else {}),
    }
    return Compiled({binary: built.asm[binary], assembly: text.encode()}, metadata)


def why_unfit(spec: Specialisation) -> str:
    """Why the specialisation is not one of its kernel; empty where it is."""
    given, wanted = [*spec.signature, *spec.constants], spec.kernel.arg_names
    if sorted(given) != sorted(wanted):
        return f"signature and constants name {sorted(given)}, the kernel's arguments are {sorted(wanted)}"
    if unknown := set(spec.aligned) - set(spec.signature):
        return f"aligned names {sorted(unknown)}, which are no runtime arguments"
    kinds = [kind for declared in spec.signature.values() for kind in _entries(declared)]
    unknown = {kind for kind in kinds if not kind.startswith("*") and kind not in BYTES}
    return f"types {sorted(unknown)} are none that launchers pass: {sorted(BYTES)}" if unknown else ""


def why_not_launchable(made: object) -> str:
    """Why a launch of grid, block and parameters alone would not do; empty where it does."""
    sizes = {scratch: getattr(made, f"{scratch}_size", 0) for scratch in SCRATCH}
    if any(sizes.values()):
        return f"it needs scratch memory ({sizes} bytes), and launchers pass none"
    if made.num_ctas != 1 or made.launch_cooperative_grid:
        return "it needs a cluster or cooperative launch, and launchers make neither"
    return ""


def parameters(spec: Specialisation) -> list[dict[str, object]]:
    """The kernel's parameters in their order: constants fall away, tuples are flattened, scratch pointers follow."""
    listed = [
        _parameter(name if kind == declared else f"{name}.{place}", kind, aligned=name in spec.aligned)
        for name, declared in ((a, spec.signature[a]) for a in spec.kernel.arg_names if a in spec.signature)
        for place, kind in enumerate(_entries(declared))
    ]
    return [*listed, *(_parameter(name, "null", aligned=False) for name in SCRATCH)]


def _parameter(name: str, kind: str, *, aligned: bool) -> dict[str, object]:
    return {"name": name, "type": kind, "bytes": BYTES.get(kind, 8), "divisible_by": 16 if aligned else 1}


def _entries(declared: str | tuple[str, ...]) -> tuple[str, ...]:
    return declared if isinstance(declared, tuple) else (declared,)


def _attributes(spec: Specialisation) -> dict[tuple[int, ...], list[list[object]]]:
    """Triton's form of `aligned`: the path of each parameter -> what is known of it."""
    paths: list[tuple[int, ...]] = []
    for place, argument in enumerate(spec.kernel.arg_names):
        declared = spec.signature.get(argument)
        if argument in spec.aligned:
            paths += [(place, i) for i in range(len(declared))] if isinstance(declared, tuple) else [(place,)]
    return {path: [["tt.divisibility", 16]] for path in paths}


@functools.cache
def _ptxas(arch: int) -> str:
    """The version of the assembler that Triton uses for `arch`."""
    tool = knobs.nvidia.ptxas_blackwell if arch >= 100 else knobs.nvidia.ptxas
    said = subprocess.run([tool.path, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", said)[1]
