"""Every op's own bench, one after the other, under one name.

bench/ops/bench_<op>.py says what an op is held to. Comparisons that ops have in common have names in common:
`vs_copy`, `vs_lerp`, `vs_naive`, `vs_compiled`, ratios of one run, forward and backward cases apart.
"""

import dataclasses
import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from bench.registry import Options
from bench.row import Row
from esper.ops import backends

GPU = True
LONG = True  # the same benches run by their own names where none is given
NAME = "ops"


def benches(gpu: bool) -> dict[str, ModuleType]:
    """Op -> its bench; on a GPU, those that use one."""
    found = {op: importlib.import_module(f"bench.ops.bench_{op}") for op in sorted(set(backends.OPS.values()))}
    return {op: bench for op, bench in found.items() if not gpu or getattr(bench, "GPU", False)}


def rows(options: Options) -> Iterator[Row]:
    for op, bench in benches(options.gpu).items():
        for row in bench.rows(options):
            yield dataclasses.replace(row, bench=NAME, case=f"{op} {row.case}")


@pytest.mark.parametrize("op", sorted(set(backends.OPS.values())))
def test_ops(benchmark, op: str) -> None:  # type: ignore[no-untyped-def]
    benchmark.pedantic(lambda: next(benches(gpu=False)[op].rows(Options(quick=True))), rounds=1)
