"""Run generated kernels in Triton's interpreter and compare with the reference; a process of its own, on a CPU.

    TRITON_INTERPRET=1 python -m esper.tezzeret.interpreted FOLDER

FOLDER holds graph.json, interface.json and triton/*. Triton decides when a kernel is defined whether it is interpreted,
for itself as for its own library, so that a process that compiles cannot also interpret.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from esper.artifact import canonical_json
from esper.artifact.agree import check_agreement, draw_weights, outcome
from esper.artifact.body import GRAPH
from esper.artifact.contents import read_graph_file
from esper.artifact.fused import FusedForm
from esper.artifact.regions import PASSES, REGIONS, Region, read_regions
from esper.blueprint.interface import DTYPES, Interface, Kind
from esper.blueprint.ir import Graph
from esper.blueprint.lower import lower
from esper.blueprint.plan import Plan, plan
from esper.errors import DeadlineExceeded, EsperError, KernelFault
from esper.tezzeret.kernels import module_of

INTERFACE = "interface.json"
_TIMEOUT_S = 120.0
_AT_WORK = 1
# Over the largest value of each tensor, against float64: a kernel rounds once where it stores.
_NARROW = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
_DRAWS = 8


def check_interpreted(files: Mapping[str, bytes], interface: Interface) -> dict[str, float]:
    """Largest difference from the reference: "float32" of the form in float32, and in the interface's own type.

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
            for direction in PASSES:
                name = region.kernel(direction)
                self._kernels[name] = (getattr(module, name), region)

    def __call__(self, name: str, programs: int, arguments: Mapping[str, Tensor | int]) -> None:
        kernel, region = self._kernels[name]
        kernel[(programs,)](**arguments, ROWS=region.tile_rows, COLS=region.tile_columns)


def fused(folder: Path, concrete: Plan) -> FusedForm:
    """The form of `folder`, its seed at work."""
    regions = read_regions((folder / REGIONS).read_bytes(), concrete)
    state = torch.tensor([_AT_WORK], dtype=torch.uint8)
    return FusedForm(concrete, regions, Interpreter(folder, regions), state, 1 << _AT_WORK)


def _compare(folder: Path) -> dict[str, float]:
    graph = read_graph_file((folder / GRAPH).read_bytes())
    read = canonical_json.read((folder / INTERFACE).read_bytes(), INTERFACE, 1 << 10)
    dtype = next(dtype for dtype in DTYPES if str(dtype) == f"torch.{read['element_type']}")
    interface = Interface(Kind(read["kind"]), read["channels"], dtype, bool(read["causal"]))
    form = fused(folder, plan(graph, interface))
    seen = {"float32": check_agreement(graph, interface, form, form_name="Triton form")}
    if dtype in _NARROW:
        seen[read["element_type"]] = _narrow(graph, interface, form)
    return seen


def _narrow(graph: Graph, interface: Interface, form: FusedForm) -> float:
    """In the interface's own type, against float64 of the same values; the reference's own rounding is allowed too.

    Where rounding carries a value over a kink, as relu's, its gradient is off by a whole slope, in the reference as in
    the form. That happens in some draws and a fault of the form in all, so that the first draw without it counts.
    """
    exact = lower(graph, Interface(interface.kind, interface.channels, torch.float64, interface.causal))
    module = lower(graph, interface)
    generator = torch.Generator().manual_seed(0)
    gaps, worst = list[str](), 0.0
    for _ in range(_DRAWS):
        weights = draw_weights(module, generator)
        h = interface.example(2, *(3,) * interface.kind.position_dims, generator=generator)
        wanted = outcome(lambda x, *p: exact.functional(p, x), h.double(), [w.double() for w in weights])
        plain = outcome(lambda x, *p: module.functional(p, x), h, weights)
        worst, beyond = _worst(wanted, outcome(form, h, weights), plain, interface.dtype)
        if not beyond:
            return worst
        gaps.append(beyond)
    raise KernelFault(f"the Triton form in {interface.dtype}, in each of {_DRAWS} draws: {'; '.join(gaps)}")


def _worst(
    wanted: Sequence[Tensor], got: Sequence[Tensor], plain: Sequence[Tensor], dtype: torch.dtype
) -> tuple[float, str]:
    """(largest difference over a tensor's largest value, "" or what is beyond its limit)."""
    worst = 0.0
    for want, its, torchs in zip(wanted, got, plain, strict=True):
        scale = want.abs().max().item() or 1.0
        gap, rounding = ((one.double() - want).abs().max().item() / scale for one in (its, torchs))
        limit = _NARROW[dtype] + 2 * rounding
        if not gap <= limit:
            return gap, f"{gap:.3g} from float64, at most {limit:.3g}"
        worst = max(worst, gap)
    return worst, ""


if __name__ == "__main__":
    try:
        print(json.dumps(_compare(Path(sys.argv[1]))))
    except EsperError as failure:
        sys.exit(str(failure))
