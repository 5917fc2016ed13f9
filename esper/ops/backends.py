"""Which implementation of an op runs. The only place that chooses, and the only one that reads ESPER_KERNELS.

    reference   plain torch expressions in esper/ops/<op>.py; everywhere
    cpp         csrc/cpu/<op>.cpp, in the compiled library; CPU tensors
    cuda        csrc/cuda/<op>.cu, in the same library where it was built with nvcc; CUDA tensors
    triton      kernels_triton/<op>.py; CUDA tensors (and CPU tensors under TRITON_INTERPRET=1, for tests)

All implementations of an op are functions of one signature, so choosing is a lookup. ESPER_KERNELS=<backend> forces
one and fails where it is absent; `auto`, the default, takes the first of PREFERENCE that is there.
`python -m esper.ops` prints what was chosen, and why.
"""

import contextlib
import functools
import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from esper.errors import InvalidConfig, Unavailable
from esper.ops import extension

Implementation = Callable[..., Any]

OPS = {  # op -> the file it lives in, of the same name in every backend
    "advance_state": "advance_state",
    "blend": "blend",
    "blend_": "blend",
    "blend_backward": "blend",
    "seed_stats": "seed_stats",
}
BACKENDS = ("reference", "cpp", "cuda", "triton")
# cuda before triton: it needs no compilation at the first call. Their speed has not been compared.
PREFERENCE = {"cpu": ("cpp", "reference"), "cuda": ("cuda", "triton", "reference")}


_forced: str | None = None


def requested() -> str:
    """The backend asked for, or "auto". Raises InvalidConfig for a name nobody knows."""
    return _forced or _from_environment()


@functools.cache
def _from_environment() -> str:
    name = os.environ.get("ESPER_KERNELS") or "auto"
    if name != "auto" and name not in BACKENDS:
        raise InvalidConfig(f"ESPER_KERNELS is {name!r}; it must be one of auto, {', '.join(BACKENDS)}")
    return name


@contextlib.contextmanager
def forced(backend: str) -> Iterator[None]:
    """Inside the block `backend` runs every op, whatever ESPER_KERNELS says. For tests and benches; not thread-safe."""
    global _forced
    kept, _forced = _forced, backend
    _forget()
    try:
        yield
    finally:
        _forced = kept
        _forget()


def _forget() -> None:
    global ours_from
    ours_from = None
    pick.cache_clear()


@functools.cache
def pick(op: str, device_type: str) -> Implementation:
    """The function that runs `op` on tensors of `device_type` ("cpu", "cuda"). Raises Unavailable."""
    return find(op, chosen(device_type), device_type)


def chosen(device_type: str) -> str:
    """The backend's name: the forced one, there or not, or the first of PREFERENCE that is there."""
    if requested() != "auto":
        return requested()
    order = PREFERENCE.get(device_type, ("reference",))
    return next(backend for backend in order if not why_not(backend, device_type))


def find(op: str, backend: str, device_type: str) -> Implementation:
    """One named implementation. Raises Unavailable, naming what is missing and the remedy."""
    if reason := why_not(backend, device_type):
        raise Unavailable(f"{op}: backend {backend} cannot run on {device_type}: {reason}")
    if backend in ("cpp", "cuda"):
        return getattr(torch.ops.esper_native, op).default  # type: ignore[no-any-return]
    if backend == "triton":
        return getattr(importlib.import_module(f"kernels_triton.{OPS[op]}"), op)  # type: ignore[no-any-return]
    return getattr(importlib.import_module(f"esper.ops.{OPS[op]}"), f"{op}_reference")  # type: ignore[no-any-return]


def checks_itself(implementation: Implementation) -> bool:
    """Whether it is the library's: it checks every argument before it writes, whatever was checked in Python."""
    return type(implementation) is torch._ops.OpOverload


def why_not(backend: str, device_type: str) -> str:
    """Why `backend` cannot serve tensors of `device_type`; empty where it can."""
    checks = {"reference": lambda _: "", "cpp": _why_not_cpp, "cuda": _why_not_cuda, "triton": _why_not_triton}
    return checks[backend](device_type)


def _why_not_cpp(device_type: str) -> str:
    return "it is for cpu tensors" if device_type != "cpu" else extension.load().missing


def _why_not_cuda(device_type: str) -> str:
    if device_type != "cuda":
        return "it is for cuda tensors"
    if missing := extension.load().missing:
        return missing
    if not extension.load().cuda_archs:
        return "the library was built without CUDA: install the CUDA toolkit and build again with ESPER_BUILD_CUDA=1"
    return _why_no_gpu()


def _why_not_triton(device_type: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'esper[triton]'"
    if device_type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return "" if interpreted else "triton has no CPU target; TRITON_INTERPRET=1 interprets its kernels, for tests"
    return _why_no_gpu() if device_type == "cuda" else "it is for cuda tensors"


def _why_no_gpu() -> str:
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device; see nvidia-smi"


# On CPU one float32 slot over all channels is one torch kernel (addcmul or lerp): as fast as ours, with less to do per
# call. With a gradient for alphas our one backward kernel replaces four; it makes up for the Python around it, and a
# whole step is faster, from this many elements. In lower precision torch's expression makes float32 copies, and ours
# wins at every size. Figures and command in docs/ops.md.
FROM_ELEMENTS = 1 << 17
# The same where a backend may not be chosen (0: never torch's) or there is no library (no limit). None: not yet known.
ours_from: float | None = None


def expression_is_faster(host: torch.Tensor, alphas: torch.Tensor) -> bool:
    """Whether one slot over the whole of `host`, of the alphas' dtype, is best left to torch's own expression."""
    global ours_from
    if ours_from is None:
        ours_from = 0 if requested() != "auto" else FROM_ELEMENTS if chosen("cpu") == "cpp" else math.inf
    if not ours_from or not host.is_cpu:
        return False
    return host.numel() < ours_from or not alphas.requires_grad
