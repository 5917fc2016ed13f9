"""What the generated kernels of tests/tezzeret/fusable.py compute, by Triton's interpreter: one JSON object.

TRITON_INTERPRET=1 python -m tests.tezzeret.interpreted_graphs FOLDER
"""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from esper.artifact.agree import differences, draw_weights, outcome, tensor_names
from esper.artifact.fused import FusedForm
from esper.artifact.regions import read_regions
from esper.blueprint.interface import Interface
from esper.blueprint.lower import lower
from esper.blueprint.plan import plan
from esper.tezzeret.interpreted import Interpreter
from esper.tezzeret.kernels import source_files
from esper.tezzeret.regions import find_regions
from tests.tezzeret.fusable import CASES, GRAPHS, INTERFACES

STATE, AT_WORK = 3, torch.tensor([3], dtype=torch.uint8)
# (batch, positions): none a multiple of the tile, one with several programs a sample, none at all
SHAPES = {
    0: ((5, ()), (1, ()), (0, ())),
    1: ((3, (70,)), (1, (1,)), (0, (4,))),
    2: ((2, (7, 9)), (1, (1, 1)), (0, (2, 2))),
}


def form_of(graph, interface: Interface, folder: Path, state=AT_WORK, tile_rows=None) -> FusedForm:
    concrete = plan(graph, interface)
    regions, _ = find_regions(concrete)
    if tile_rows:
        regions = tuple(replace(region, tile_rows=tile_rows) for region in regions)
    files = source_files(regions, concrete)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "triton").mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    regions = read_regions(files["triton/regions.json"], concrete)
    return FusedForm(concrete, regions, Interpreter(folder, regions), state, 1 << STATE, joins=True)


def compared(name: str, interface: Interface, folder: Path) -> dict[str, float]:
    """Tensor -> largest difference from float64 over its largest value, over all shapes; and how often it was NaN."""
    exact = lower(GRAPHS[name], Interface(interface.kind, interface.channels, torch.float64, interface.causal))
    generator = torch.Generator().manual_seed(1)
    weights = [w.to(interface.dtype) for w in draw_weights(exact, generator)]
    form = form_of(GRAPHS[name], interface, folder, tile_rows=16)
    seen: dict[str, float] = {}
    for batch, positions in SHAPES[interface.kind.position_dims]:
        h = interface.example(batch, *positions, generator=generator)
        if h.ndim > 1 and batch:
            h = h.transpose(0, -1).contiguous().transpose(0, -1)  # the same values, not dense
        wanted = outcome(lambda x, *p: exact.functional(p, x), h.double(), [w.double() for w in weights])
        got = [tensor.double() for tensor in outcome(form, h, weights)]
        for tensor, gap in zip(tensor_names(exact), differences(got, wanted), strict=True):
            seen[tensor] = max(seen.get(tensor, 0.0), gap)
    return seen


# what a kernel of each graph writes: every kind of result there is
WRITTEN = {
    "chain": {"forward": ("v11_ptr",), "backward": ("d0_ptr", "p0_sums_ptr")},
    "pair": {"forward": ("v6_ptr",), "backward": ("d0_ptr", "outer2_ptr", "behind2_ptr", "inner2_ptr", "within2_ptr")},
}


def _poisoned(launch, written, names, name, programs, arguments):
    """Launch over results that hold 7s, and keep them."""
    for one in names[name.rpartition("_")[2]]:
        written.append(arguments[one].fill_(7))
    launch(name, programs, arguments)


def dormant(name: str, folder: Path) -> dict[str, list[bool]]:
    """State -> of each result of a graph's kernels, whether it is as it was before them."""
    untouched = {}
    for state in (STATE, 0, 62, 63, 255):
        form = form_of(GRAPHS[name], INTERFACES[0], folder, torch.tensor([state], dtype=torch.uint8))
        written: list[torch.Tensor] = []
        form._launch = functools.partial(_poisoned, form._launch, written, WRITTEN[name])
        generator = torch.Generator().manual_seed(0)
        h = INTERFACES[0].example(2, 3, generator=generator).requires_grad_()
        shapes = plan(GRAPHS[name], INTERFACES[0]).shapes
        weights = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
        form(h, *weights).square().sum().backward()
        untouched[str(state)] = [bool((tensor == 7).all()) for tensor in written]
    return untouched


if __name__ == "__main__":
    home = Path(sys.argv[1])
    found = {f"{n} {i}": compared(n, i, home / f"case{at}") for at, (n, i) in enumerate(CASES)}
    asleep = {name: dormant(name, home / f"dormant_{name}") for name in WRITTEN}
    print(json.dumps({"differences": found, "dormant": asleep}))
