"""Launches kernels that were compiled ahead of time, where Triton is not installed.

    python -m kernels_triton.aot --targets sm_90 --out kernels          on a machine that has it; no GPU needed
    kernel = load(Path("kernels"), "blend_forward_bf16_1_residual", torch.device("cuda"))
    kernel.launch((blocks, 1, 1), host_ptr=host, seed_ptrs=(seed,), alphas_ptr=alphas, out_ptr=out, rows=1, ...)

A launch takes the kernel's own arguments by name: tensors for addresses, numbers, a tuple for a tuple argument. What
the kernel was compiled for (element types, multiples of 16, numbers of 32 bits) is checked and refused by name; that a
tensor is large enough for the kernel's grid is the caller's promise, as with any kernel. Tensors that a kernel writes
do not have their autograd version advanced.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from esper.ops import extension

Argument = Tensor | int | float | Sequence[Tensor] | Sequence[int] | Sequence[float]

DIGESTS = "SHA256SUMS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel on one device. `metadata` is what `kernels_triton.aot` wrote beside it."""

    handle: int
    metadata: Mapping[str, Any]

    def launch(self, grid: tuple[int, int, int], **arguments: Argument) -> None:
        """Run on the current stream. `grid` is blocks in x, y and z.

        Raises InvalidRequest for missing, unknown or misplaced arguments, and under grad mode where a tensor requires
        grad; RuntimeError, naming argument and limit, for what the library refuses.
        """
        tensors, integers, floats = split(self.metadata["parameters"], arguments)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            name = self.metadata["name"]
            raise InvalidRequest(f"{name}: a tensor requires grad, and a launch records none; call it under no_grad")
        with torch.no_grad():
            torch.ops.esper_native.launch_cubin(self.handle, tensors, integers, floats, list(grid))


def load(folder: Path, name: str, device: torch.device) -> Kernel:
    """The kernel `name` below `folder`, which `kernels_triton.aot` wrote, for `device`'s architecture.

    Raises NotFound (no such kernel), Unavailable (no library, no device, no code for it), Corrupt (digests differ),
    RuntimeError for what the library or the driver refuses.
    """
    index = _device_index(name, device)
    target, reason = choose(targets(folder, name), torch.cuda.get_device_capability(index))
    if target is None:
        raise Unavailable(f"{name} in {folder}: {reason}")
    metadata, image = read(folder, target, name)
    return _loaded(metadata, image, index)


def load_image(metadata: Mapping[str, Any], image: bytes, device: torch.device) -> Kernel:
    """A kernel from bytes that the caller has verified, with its description as `kernels_triton.compilation` gives it.

    Raises Unavailable (no library, no device, code for another architecture) and RuntimeError as `load`.
    """
    name = str(metadata["name"])
    index = _device_index(name, device)
    target, reason = choose({str(metadata["target"]): str(metadata["arch"])}, torch.cuda.get_device_capability(index))
    if target is None:
        raise Unavailable(f"{name}: {reason}")
    return _loaded(metadata, image, index)


def _device_index(name: str, device: torch.device) -> int:
    if missing := extension.load().missing:
        raise Unavailable(f"{name}: launching needs the compiled library: {missing}")
    if not torch.cuda.is_available():
        raise Unavailable(f"{name}: torch {torch.__version__} sees no CUDA device; see nvidia-smi")
    return torch.cuda.current_device() if device.index is None else device.index


def _loaded(metadata: Mapping[str, Any], image: bytes, index: int) -> Kernel:
    handle = torch.ops.esper_native.load_cubin(
        torch.frombuffer(bytearray(image), dtype=torch.uint8), metadata["kernel"], layout(metadata["parameters"]),
        metadata["num_warps"], metadata["shared_bytes"], index,
    )  # fmt: skip
    return Kernel(handle=handle, metadata=metadata)


def targets(folder: Path, name: str) -> dict[str, str]:
    """Target -> architecture of its code ("sm_80", or "sm_90a", which only 9.0 runs), of what NVIDIA's devices run."""
    found = {path.parent.name: json.loads(path.read_bytes())["arch"] for path in folder.glob(f"sm_*/{name}.json")}
    if not found:
        raise NotFound(f"{folder} holds no kernel {name}: write it with python -m kernels_triton.aot --out {folder}")
    return found


def choose(archs: Mapping[str, str], capability: tuple[int, int]) -> tuple[str | None, str]:
    """(target, "") for a device of that compute capability, the latest that it runs; or (None, why there is none)."""
    major, minor = capability
    fitting = [t for t, arch in archs.items() if _runs(arch, major, minor)]
    if fitting:
        return max(fitting, key=_number), ""
    there = ", ".join(sorted(archs, key=_number))
    wanted = f"sm_{major}{minor}"
    return None, f"compiled for {there}; the device is {wanted}. Compile with --targets {wanted}, if it is one it knows"


def _number(target: str) -> int:
    return int(target.removeprefix("sm_").rstrip("af"))


def _runs(arch: str, major: int, minor: int) -> bool:
    """Code runs on its own and later minor versions of its major one; code with a letter, on its own alone."""
    its_major, its_minor = divmod(_number(arch), 10)
    return its_major == major and (its_minor == minor if arch[-1].isalpha() else its_minor <= minor)


def read(folder: Path, target: str, name: str) -> tuple[dict[str, Any], bytes]:
    """(metadata, cubin), both equal to their digests. Raises NotFound, Corrupt."""
    paths = [f"{target}/{name}.json", f"{target}/{name}.cubin"]
    sums = _digests(folder)
    for path in paths:
        if path not in sums or not (folder / path).is_file():
            raise NotFound(f"{folder / path} is not there, or {DIGESTS} does not list it: compile it again")
    contents = [(folder / path).read_bytes() for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if (found := hashlib.sha256(content).hexdigest()) != sums[path]:
            raise Corrupt(f"{folder / path} has SHA-256 {found}, {DIGESTS} says {sums[path]}: compile it again")
    return json.loads(contents[0]), contents[1]


def _digests(folder: Path) -> dict[str, str]:
    path = folder / DIGESTS
    if not path.is_file():
        raise NotFound(f"{path} is not there: {folder} was not written by python -m kernels_triton.aot")
    lines = (line.partition("  ") for line in path.read_text().splitlines())
    return {name: digest for digest, _, name in lines}


def layout(parameters: Sequence[Mapping[str, Any]]) -> str:
    """The parameters as csrc/cuda/cubin_parameters.h reads them."""
    return ",".join(p["type"] + ("/16" if p["divisible_by"] == 16 else "") for p in parameters)


def split(
    parameters: Sequence[Mapping[str, Any]], arguments: Mapping[str, Argument]
) -> tuple[list[Tensor], list[int], list[float]]:
    """Arguments by name as (tensors, integers, floats), each in the order of the parameters. Raises InvalidRequest."""
    given: dict[str, Any] = {}
    for name, value in arguments.items():
        entries = {f"{name}.{i}": entry for i, entry in enumerate(value)} if isinstance(value, tuple | list) else {}
        given |= entries if entries else {name: value}
    wanted = [p for p in parameters if p["type"] != "null"]
    if given.keys() != {p["name"] for p in wanted}:
        names = ", ".join(p["name"] for p in wanted)
        raise InvalidRequest(f"arguments are {', '.join(given)}; the kernel takes {names} (x.0, x.1: a tuple x)")
    tensors: list[Tensor] = []
    integers: list[int] = []
    floats: list[float] = []
    for p in wanted:
        value, kind = given[p["name"]], p["type"]
        if kind.startswith("*") and isinstance(value, Tensor):
            tensors.append(value)
        elif kind.startswith("i") and type(value) is int:
            integers.append(value)
        elif kind.startswith("fp") and type(value) in (int, float):
            floats.append(float(value))
        else:
            raise InvalidRequest(f"{p['name']} is {_text(value)}; the kernel takes {kind} there")
    return tensors, integers, floats


def _text(value: object) -> str:
    return f"a {type(value).__name__}" + ("" if isinstance(value, Tensor) else f" ({value!r})")
