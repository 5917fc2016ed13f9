"""Compiling the library: wall and CPU time of each pipeline in a worker pool, cold and warm, against `torch.compile`.

Every template at its first fitting interface, tokens or a map of 64 channels, in a pool of one worker. `cold`: from the
start of a pool to the end of its first job. Per design, in an order drawn anew, fast (cpu), fast again as the A/A
control, standard and aggressive (sm_90), and `torch.compile` of the same module with an empty cache: first forward and
backward of a new process, without its imports. CPU time counts children; that of `cold` is the warm process's, from
its start to its end, and the job's. `with_kernels`: of how many of the designs the artifact has kernels.
"""

import asyncio
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.registry import Options
from bench.row import ROOT, Row, Target, make_row
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.matching import match
from esper.errors import KernelFault
from esper.karn.templates import TEMPLATES
from esper.runtime.pool import Pool
from esper.tezzeret import codec
from esper.tezzeret.codec import Order
from esper.tezzeret.job import compile_job

NAME = "compile"
LONG = True
QUICK_TITLES = ("low_rank", "swiglu_mlp")
TARGETS = {
    "fast": ("cpu", Target(150.0)),
    "standard": ("sm_90", Target(5000.0)),
    "aggressive": ("sm_90", Target(60_000.0)),
}
KINDS = {"compile": "esper.runtime.compile_worker:compile_confined"}
INTERFACES = (Interface(Kind.TOKENS, 64), Interface(Kind.MAP2D, 64))
TIMEOUT_S = 300.0
TORCH = """
import sys, time
import torch
from bench.growth.bench_compile import interface_of
from esper.karn.templates import TEMPLATES
from esper.tezzeret.compile import reference
graph = TEMPLATES[sys.argv[1]].graph
interface = interface_of(sys.argv[1])
module, h = reference(graph, interface), interface.example(2, *[4] * interface.kind.position_dims).requires_grad_()
began = time.perf_counter()
torch.compile(module)(h).sum().backward()
print(time.perf_counter() - began)
"""


class Job(NamedTuple):
    """`wall_ms` is from giving it to its answer; `has_kernels`: a kernel of its artifact is machine code."""

    wall_ms: float
    cpu_ms: float
    has_kernels: bool


def rows(options: Options) -> Iterator[Row]:
    titles = QUICK_TITLES if options.quick else tuple(TEMPLATES)
    yield from asyncio.run(_measured(titles, with_torch=not options.quick))


def interface_of(title: str) -> Interface:
    return next(interface for interface in INTERFACES if match(TEMPLATES[title].graph, interface)[0])


def order_of(title: str, pipeline: str) -> Order:
    graph = TEMPLATES[title].graph
    return Order(graph, blueprint_id(graph), interface_of(title), TARGETS[pipeline][0], pipeline)


async def _measured(titles: Sequence[str], *, with_torch: bool) -> list[Row]:
    arms = {"fast": "fast", "control": "fast", "standard": "standard", "aggressive": "aggressive"}
    taken: dict[str, list[Job]] = {arm: [] for arm in arms}
    found, torch_ms, rng = [], list[float](), random.Random(0)
    for pipeline in TARGETS:
        wall_ms, cpu_ms = await _cold_ms(titles[-1], pipeline)
        found.append(make_row(NAME, pipeline, "cold_wall", wall_ms, "ms"))
        found.append(make_row(NAME, pipeline, "cold_cpu", cpu_ms, "ms"))
    pool = Pool(NAME, KINDS, size=1)
    await pool.start()
    try:
        await pool.preload("esper.tezzeret.job:warm_up_standard", None)
        for title in titles:
            for arm in rng.sample(list(arms), len(arms)):
                taken[arm].append(await _job(pool, title, arms[arm]))
            if with_torch:
                torch_ms.append(_torch_compile_ms(title))
    finally:
        await pool.stop()
    aa = _interval([a.wall_ms / b.wall_ms for a, b in zip(taken["control"], taken["fast"], strict=True)])
    case = f"{len(titles)} designs"
    for pipeline, (_, target) in TARGETS.items():
        walls, cpus = [job.wall_ms for job in taken[pipeline]], [job.cpu_ms for job in taken[pipeline]]
        found.append(
            make_row(NAME, f"{pipeline}, {case}", "warm_wall_p50", statistics.median(walls), "ms", target=target)
        )
        found.append(make_row(NAME, f"{pipeline}, {case}", "warm_wall_max", max(walls), "ms", target=target))
        found.append(make_row(NAME, f"{pipeline}, {case}", "warm_cpu_p50", statistics.median(cpus), "ms"))
        if pipeline != "fast":
            made = sum(job.has_kernels for job in taken[pipeline])
            found.append(make_row(NAME, f"{pipeline}, {case}", "with_kernels", made, "designs"))
        if torch_ms:
            ratio = statistics.median(wall / its for wall, its in zip(walls, torch_ms, strict=True))
            baseline = f"torch.compile: {statistics.median(torch_ms):.4g} ms"
            found.append(make_row(NAME, f"{pipeline}, {case}", "ratio", ratio, "ratio", baseline=baseline, aa=aa))
    return found


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95 % of ratios of two equal arms."""
    ordered = sorted(ratios)
    cut = int(len(ordered) * 0.025)
    return ordered[cut], ordered[len(ordered) - 1 - cut]


async def _cold_ms(title: str, pipeline: str) -> tuple[float, float]:
    """(wall, CPU) time. The pool waits for its warm process alone, whose children nobody waits for."""
    began, cpu_began_s = time.perf_counter(), _children_cpu_s()
    pool = Pool(f"{NAME}-cold", KINDS, size=1)
    await pool.start()
    try:
        job = await _job(pool, title, pipeline)
        wall_ms = (time.perf_counter() - began) * 1e3
    finally:
        await pool.stop()
    return wall_ms, (_children_cpu_s() - cpu_began_s) * 1e3 + job.cpu_ms


def _children_cpu_s() -> float:
    """Of the processes this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _job(pool: Pool, title: str, pipeline: str) -> Job:
    """Raises KernelFault where it was not compiled."""
    began = time.perf_counter()
    reply = await pool.run("compile", codec.write_order(order_of(title, pipeline)), TIMEOUT_S)
    wall_ms = (time.perf_counter() - began) * 1e3
    record, artifact = codec.read_reply(reply)
    if artifact is None:
        raise KernelFault(f"{title}, {pipeline}: {record.failure.message}")
    return Job(wall_ms, record.cpu_ms, any(name.endswith((".cubin", ".hsaco")) for name in artifact.files))


def _torch_compile_ms(title: str) -> float:
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(Path(cache)), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-c", TORCH, title]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return float(ran.stdout.splitlines()[-1]) * 1e3


def test_compile(benchmark):  # type: ignore[no-untyped-def]
    payload = codec.write_order(order_of("low_rank", "fast"))
    reply = benchmark.pedantic(lambda: compile_job(payload), rounds=1)
    assert codec.read_reply(reply)[1] is not None
