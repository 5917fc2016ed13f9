"""The library's CPU code on tensors of more than 2**31 elements: an offset of 32 bits would read and write elsewhere.

Their memory is the operating system's page of zeros until it is written, so an input costs nothing, and only what an
op must write costs memory. What Triton and CUDA compile to is looked at by test_blend_triton.py and test_extension.py.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from esper.ops import backends
from tests.requirements import require

WIDTH = 64
ELEMENTS = (1 << 31) + 4096
GIB = 1 << 30
ONE = torch.ones(1)


def untouched(*shape: int) -> Tensor:
    """bfloat16 zeros that take no memory until they are written."""
    return torch.from_numpy(np.zeros(shape, np.uint16)).view(torch.bfloat16)


def ones() -> Tensor:
    return torch.ones(1, WIDTH, dtype=torch.bfloat16)


LAST = [ELEMENTS - WIDTH, ELEMENTS]
MARKED = (5, 1 << 30, (1 << 31) - 1, 1 << 31, ELEMENTS - WIDTH - 1)  # places, each with a value of its own


def blend() -> None:
    host = untouched(1, ELEMENTS)
    for place, at in enumerate(MARKED):
        host[0, at] = place + 2
    out = torch.ops.esper.blend(host, [ones()], ONE, LAST, 1, False)
    assert [out[0, at].item() for at in MARKED] == [2, 3, 4, 5, 6]
    assert out[0, -WIDTH:].eq(1).all()
    assert out[0, : 1 << 20].count_nonzero() == 1  # where a product of 32 bits would have landed


def blend_backward() -> None:
    grad = untouched(1, ELEMENTS)
    grad[0, -WIDTH:] = 2
    d_seed, d_alphas = torch.ops.esper.blend_backward(grad, None, [ones()], ONE / 2, LAST, 1, False)
    assert d_seed.eq(1).all()
    assert d_alphas.tolist() == [2 * WIDTH]


def blend_() -> None:
    host = untouched(1, ELEMENTS)
    torch.ops.esper.blend_(host, [ones()], ONE, torch.tensor([3], dtype=torch.uint8), 1 << 3, LAST, 1, False)
    assert host[0, -WIDTH:].eq(1).all()
    assert host[0, : 1 << 20].eq(0).all()


def seed_stats() -> None:
    values, stats = untouched(ELEMENTS, 1), torch.zeros(1, 8)
    values[-1] = 5
    torch.ops.esper.seed_stats(values, [0, 1], 1, 0.99, stats)
    mean, variance, zeros, *_ = stats[0].double().tolist()
    assert mean == pytest.approx(5 / ELEMENTS, rel=1e-5)
    assert variance == pytest.approx(25 / ELEMENTS, rel=1e-5)
    assert zeros == pytest.approx(1 - 1 / ELEMENTS)
    assert stats[0, 5] == 5


LARGE: dict[str, tuple[Callable[[], None], int]] = {  # op -> its proof, and the GiB that it must write
    "blend": (blend, 5),
    "blend_backward": (blend_backward, 1),
    "blend_": (blend_, 1),
    "seed_stats": (seed_stats, 1),
}
SMALL_BY_NATURE = {"advance_state"}  # one element a seed


def test_every_op_is_proven_or_small_by_nature():
    assert set(backends.OPS) <= set(LARGE) | SMALL_BY_NATURE


@pytest.mark.slow
@pytest.mark.parametrize("op", [op for op in backends.OPS if op in LARGE])
def test_offsets_have_64_bits(using, op):
    prove, gib = LARGE[op]
    free = free_memory()
    require(f"{gib + 1} GiB of free memory", "" if free > (gib + 1) * GIB else f"{free / GIB:.1f} GiB are free")
    with using("cpp"), torch.no_grad():
        prove()


def free_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
