"""Run generated kernels in Triton's interpreter and compare with the reference; a process of its own, on a CPU.

    TRITON_INTERPRET=1 python -m esper.tezzeret.interpreted FOLDER

FOLDER holds graph.json, interface.json and triton/*. Triton decides when a kernel is defined whether it is interpreted,
for itself as for its own library, so that a process that compiles cannot also interpret.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from esper.artifact import canonical_json
from esper.artifact.agree import TOLERANCE, check_agreement, draw_weights, outcome, tensor_names
from esper.artifact.body import GRAPH
from esper.artifact.contents import read_graph_file
from esper.artifact.fused import FusedForm
from esper.artifact.regions import JOINED, PASSES, REGIONS, Region, last_region, read_regions
from esper.blueprint.interface import DTYPES, Interface, Kind
from esper.blueprint.ir import Graph
from esper.blueprint.lower import Lowered, lower
from esper.blueprint.plan import Plan, plan
from esper.errors import DeadlineExceeded, EsperError, KernelFault
from esper.tezzeret.kernels import module_of

INTERFACE = "interface.json"
_TIMEOUT_S = 120.0
_AT_WORK = 1
# Over the largest value of each tensor, against float64: a kernel rounds once where it stores.
_NARROW = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
_DRAWS = 8
_LIMITS = {torch.float32: TOLERANCE, **_NARROW}
_FLOOR = 1e-3  # of the largest of all: a gradient that is 0 in exact arithmetic holds nothing but rounding


def check_interpreted(files: Mapping[str, bytes], interface: Interface) -> dict[str, float]:
    """Largest difference from the reference: "float32" of the form in float32, and in the interface's own type.

    "joined": of what the last region's joined kernels blend, in both; absent where no region makes the last value.
    `files` holds graph.json and triton/*. Raises KernelFault, naming the tensor, where it is over what rounding makes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "triton").mkdir()
        described = {
            "causal": int(interface.causal),
            "channels": interface.channels,
            "element_type": str(interface.dtype).removeprefix("torch."),
            "kind": interface.kind.value,
        }
        for path, data in {**files, INTERFACE: canonical_json.write(described)}.items():
            if path in (GRAPH, INTERFACE, REGIONS) or path.endswith(".py"):
                (folder / path).write_bytes(data)
        command = [sys.executable, "-W", "ignore", "-m", __name__, name]
        environment = {
            **os.environ,
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        try:
            ran = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(f"interpreting the kernels took over {_TIMEOUT_S:g} s") from error
    if ran.returncode:
        raise KernelFault(f"the Triton kernels, interpreted: {ran.stderr.strip()[-1500:]}")
    seen: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return seen


class Interpreter:
    """Launches the sources below `folder`/triton, in a process that interprets."""

    def __init__(self, folder: Path, regions: tuple[Region, ...]) -> None:
        self._kernels = {}
        for region in regions:
            path = folder / region.source
            module = module_of(path.read_bytes(), path)
            for name in map(region.kernel, (*PASSES, *JOINED)):
                if hasattr(module, name):  # the last region alone has joined kernels
                    self._kernels[name] = (getattr(module, name), region)

    def __call__(self, name: str, programs: int, arguments: Mapping[str, Tensor | int]) -> None:
        kernel, region = self._kernels[name]
        kernel[(programs,)](**arguments, ROWS=region.tile_rows, COLS=region.tile_columns)


def fused(folder: Path, concrete: Plan) -> FusedForm:
    """The form of `folder`, its seed at work."""
    regions = read_regions((folder / REGIONS).read_bytes(), concrete)
    state = torch.tensor([_AT_WORK], dtype=torch.uint8)
    return FusedForm(concrete, regions, Interpreter(folder, regions), state, 1 << _AT_WORK, joins=True)


def _compare(folder: Path) -> dict[str, float]:
    graph = read_graph_file((folder / GRAPH).read_bytes())
    read = canonical_json.read((folder / INTERFACE).read_bytes(), INTERFACE, 1 << 10)
    dtype = next(dtype for dtype in DTYPES if str(dtype) == f"torch.{read['element_type']}")
    interface = Interface(Kind(read["kind"]), read["channels"], dtype, bool(read["causal"]))
    concrete = plan(graph, interface)
    form = fused(folder, concrete)
    seen = {"float32": check_agreement(graph, interface, form, form_name="Triton form")}
    if dtype in _NARROW:
        seen[read["element_type"]] = _narrow(graph, interface, form)
    if last_region(read_regions((folder / REGIONS).read_bytes(), concrete), concrete):
        wide = replace(interface, dtype=torch.float32)
        seen["joined"] = max(_joined(graph, one, form) for one in {wide, interface})
    return seen


def _narrow(graph: Graph, interface: Interface, form: FusedForm) -> float:
    """In the interface's own type, against float64 of the same values; the reference's own rounding is allowed too.

    Where rounding carries a value over a kink, as relu's, its gradient is off by a whole slope, in the reference as in
    the form. That happens in some draws and a fault of the form in all, so that the first draw without it counts.
    """
    exact = lower(graph, Interface(interface.kind, interface.channels, torch.float64, interface.causal))
    module = lower(graph, interface)
    generator = torch.Generator().manual_seed(0)
    names = [f"{tensor} of the Triton form" for tensor in tensor_names(module)]

    def draw() -> tuple[float, str]:
        weights = draw_weights(module, generator)
        h = interface.example(2, *(3,) * interface.kind.position_dims, generator=generator)
        wanted = outcome(lambda x, *p: exact.functional(p, x), h.double(), [w.double() for w in weights])
        plain = outcome(lambda x, *p: module.functional(p, x), h, weights)
        scales = [want.abs().max().item() or 1.0 for want in wanted]
        return _worst(names, interface.dtype, wanted, outcome(form, h, weights), plain, scales)

    return _first_sound(draw)


def _joined(graph: Graph, interface: Interface, form: FusedForm) -> float:
    """As `_narrow`, of the form blended into its host, residual and convex: gradients of host, alpha and parameters.

    Raises KernelFault also where alpha 0 does not leave the host as it is, bit for bit.
    """
    exact = lower(graph, replace(interface, dtype=torch.float64))
    module = lower(graph, interface)
    generator = torch.Generator().manual_seed(0)
    first, second, *others = tensor_names(module)
    names = [f"{one} of the joined Triton form" for one in (first, second, "gradient of alpha", *others)]
    alpha = torch.tensor(0.3)

    def draw(convex: bool) -> tuple[float, str]:
        weights = draw_weights(module, generator)
        h = interface.example(2, *(3,) * interface.kind.position_dims, generator=generator)
        if not torch.equal(form.joined(h, torch.zeros(()), *weights, convex=False), h):
            raise KernelFault(f"the joined Triton form at alpha 0 is not the host in {interface.dtype}")
        blend = torch.lerp if convex else torch.addcmul
        wanted = outcome(_blended(exact, blend), h.double(), [alpha.double(), *(w.double() for w in weights)])
        plain = outcome(_blended(module, blend), h, [alpha, *weights])
        got = outcome(functools.partial(form.joined, convex=convex), h, [alpha, *weights])
        largest = max(tensor.abs().max().item() for tensor in wanted)
        scales = [max(want.abs().max().item(), _FLOOR * largest) for want in wanted]
        # a sum of as many terms as there are values, which may cancel: its rounding goes with their size, not with its
        scales[2] = max(scales[2], (wanted[0] - h.double()).norm().item() / alpha.item())
        return _worst(names, interface.dtype, wanted, got, plain, scales)

    return max(_first_sound(functools.partial(draw, convex)) for convex in (False, True))


def _blended(module: Lowered, blend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """(host, alpha, *parameters) -> the branch blended into the host, in alpha's type."""

    def call(h: Tensor, alpha: Tensor, *parameters: Tensor) -> Tensor:
        branch = module.functional(parameters, h)
        return blend(h.to(alpha.dtype), branch.to(alpha.dtype), alpha).to(h.dtype)

    return call


def _first_sound(draw: Callable[[], tuple[float, str]]) -> float:
    """The largest gap of the first draw that is within its limits. Raises KernelFault where none of several is."""
    said = ""
    for _ in range(_DRAWS):
        worst, beyond = draw()
        if not beyond:
            return worst
        said = said or beyond
    raise KernelFault(f"{said}; something is in each of {_DRAWS} draws")


def _worst(
    names: Sequence[str],
    dtype: torch.dtype,
    wanted: Sequence[Tensor],
    got: Sequence[Tensor],
    plain: Sequence[Tensor],
    scales: Sequence[float],
) -> tuple[float, str]:
    """(largest gap between `got` and float64's `wanted` over the scale of each, "" or which is over its limit).

    `plain`: what torch makes in `dtype`.
    """
    worst = 0.0
    for name, want, seen, torchs, scale in zip(names, wanted, got, plain, scales, strict=True):
        gap, its = ((one.double() - want).abs().max().item() / scale for one in (seen, torchs))
        limit = _LIMITS[dtype] + 2 * its
        if not gap <= limit:
            return gap, f"the {name} is {gap:.3g} from float64's in {dtype}, at most {limit:.3g}"
        worst = max(worst, gap)
    return worst, ""


if __name__ == "__main__":
    try:
        print(json.dumps(_compare(Path(sys.argv[1]))))
    except EsperError as failure:
        sys.exit(str(failure))
