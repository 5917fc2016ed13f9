"""Finds and loads the compiled library. That is all it does: which op runs where is backends.py's choice.

The library is one file beside this one, built by setup.py. It holds no Python symbol: `torch.ops.load_library` makes
its ops callable as `torch.ops.esper_native.<op>`.
"""

import ctypes
import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("libesper_native.so")
# What the Python code beside it calls; an editable install may find a library of older sources.
OPS = ("advance_state", "blend", "blend_", "blend_backward", "launch_cubin", "load_cubin", "seed_stats")
REMEDY = "build it with `pip install --no-build-isolation -e .`, which needs a C++ compiler and torch installed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """What became of loading the library."""

    path: Path | None  # None: not loaded
    missing: str = ""  # why not, and the remedy; empty where it is loaded
    build: dict[str, str] = field(default_factory=dict)  # abi, torch, cuda, compiler it was built with

    @property
    def cuda_archs(self) -> str:
        """GPU architectures in the library; empty where it has no CUDA code."""
        archs = self.build.get("cuda", "none")
        return "" if archs == "none" else archs

    @property
    def abi_target(self) -> str:
        """The oldest torch the library loads on, as "2.10"."""
        number = int(self.build["abi"].removesuffix("ULL"), 16) if self.build else 0
        return f"{number >> 56}.{number >> 48 & 0xFF}"


@functools.cache
def load() -> Extension:
    """Load the library once per process. Never raises: a failure is in `missing`."""
    return load_from(LIBRARY)


def load_from(path: Path) -> Extension:
    """Load the library at `path`."""
    if not path.exists():
        return Extension(path=None, missing=f"{path.name} is not beside esper/ops ({path.parent}): {REMEDY}")
    try:
        torch.ops.load_library(str(path))
        build_info = ctypes.CDLL(str(path)).esper_build_info
    except (OSError, AttributeError) as error:
        cause = error.__cause__ or error
        return Extension(path=None, missing=f"{path} does not load on torch {torch.__version__} ({cause}): {REMEDY}")
    if lacking := [op for op in OPS if not hasattr(torch.ops.esper_native, op)]:
        return Extension(path=None, missing=f"{path} is of other sources and has no {', '.join(lacking)}: {REMEDY}")
    build_info.restype = ctypes.c_char_p
    return Extension(path=path, build=dict(entry.split("=", 1) for entry in build_info().decode().split(";")))
