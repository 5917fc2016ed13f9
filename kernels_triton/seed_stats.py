"""Triton implementation of esper.ops.seed_stats. The definition is `seed_stats_reference` there.

A slot's chunk is cut into tiles by its shape alone; PROGRAMS programs at most walk over them, and one program per slot
joins what they found, in order. The only writes that several programs make to one place are equal.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels_triton.matrix import device_of, math_type
from kernels_triton.specialisation import Specialisation

TILE = 2048  # elements a program reads at a time. Untuned: choose with bench/ops/bench_seed_stats.py on the device
PROGRAMS = 1024
JOIN = 256  # parts the second pass takes at a time
BINS = tl.constexpr(32)
PART = tl.constexpr(6)  # float64 per part: count, mean, squares, zeros, not finite, largest magnitude
SMALLEST_LIMIT = tl.constexpr(2.0**-120)
LARGEST = tl.constexpr(3.4028234663852886e38)
COLUMNS, LIMIT = tl.constexpr(8), tl.constexpr(7)


@triton.jit
def _measures(limit):
    return (limit >= SMALLEST_LIMIT) & (limit <= LARGEST)


@triton.jit
def count_kernel(
    values_ptr,
    stats_ptr,
    parts_ptr,
    bins_ptr,
    alive_ptr,
    rows,
    width,
    begin,
    narrow,
    unit,
    tiles,
    MATH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One part of the chunk at columns [begin, begin + narrow): its six sums, its histogram, channels alive."""
    program = tl.program_id(0)
    across = tl.cdiv(narrow, COLS)
    limit = tl.load(stats_ptr + LIMIT).to(MATH)
    per_unit = tl.where(_measures(limit), BINS // 2 / limit, 0.0).to(MATH)
    count, mean, squares = tl.zeros([], tl.float64), tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    zeros, bad, largest = tl.zeros([], tl.float64), tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    bins = tl.zeros([BINS], tl.int64)
    for tile in range(program, tiles, tl.num_programs(0)):
        place = tl.zeros([], tl.int64) + tile  # in 64 bits before it is multiplied
        row = place // across * ROWS + tl.arange(0, ROWS)  # [ROWS]
        col = place % across * COLS + tl.arange(0, COLS)  # [COLS]
        inside = (row < rows)[:, None] & (col < narrow)[None, :]  # [ROWS, COLS]
        x = tl.load(values_ptr + row[:, None] * width + (begin + col)[None, :], mask=inside, other=0).to(MATH)
        tl.store(alive_ptr + (col // unit)[None, :] + tl.zeros_like(row)[:, None], 1, mask=inside & (x != 0))
        finite = inside & (tl.abs(x) < float("inf"))
        x = tl.where(finite, x, 0)
        bad += tl.sum(tl.sum((inside & ~finite).to(tl.int32), axis=1), axis=0).to(tl.float64)
        zeros += tl.sum(tl.sum((finite & (x == 0)).to(tl.int32), axis=1), axis=0).to(tl.float64)
        largest = tl.maximum(largest, tl.max(tl.max(tl.abs(x), axis=1), axis=0).to(tl.float64))
        n = tl.sum(tl.sum(finite.to(tl.int32), axis=1), axis=0).to(tl.float64)
        some = tl.maximum(n, 1)
        share = tl.sum(tl.sum(x * (1.0 / (ROWS * COLS)), axis=1), axis=0)  # in range whatever the elements
        about = share.to(tl.float64) * (ROWS * COLS / some)
        apart = tl.where(finite, x.to(tl.float64) - about, 0)
        offset = tl.sum(tl.sum(apart, axis=1), axis=0)
        here = about + offset / some
        within = tl.sum(tl.sum(apart * apart, axis=1), axis=0) - offset * offset / some
        total = tl.maximum(count + n, 1)  # Chan, Golub and LeVeque 1979
        between = here - mean
        squares += tl.where(n > 0, within + between * between * count * (n / total), 0)
        mean += tl.where(n > 0, between * (n / total), 0)
        count += n
        bin = tl.minimum(tl.maximum(x * per_unit + BINS // 2, 0), BINS - 1).to(tl.int32)
        counted = tl.histogram(tl.reshape(bin, [ROWS * COLS]), BINS, mask=tl.reshape(finite, [ROWS * COLS]))
        bins += counted.to(tl.int64)
    part = parts_ptr + program * PART
    tl.store(part, count)
    tl.store(part + 1, mean)
    tl.store(part + 2, squares)
    tl.store(part + 3, zeros)
    tl.store(part + 4, bad)
    tl.store(part + 5, largest)
    tl.store(bins_ptr + program.to(tl.int64) * BINS + tl.arange(0, BINS), bins)


@triton.jit
def join_kernel(
    parts_ptr, bins_ptr, alive_ptr, stats_ptr, programs, channels, decay, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """The slot's row, by one program."""
    count, total, zeros = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    bad, largest = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    first = tl.load(parts_ptr + 1)  # sums are taken about it
    for start in range(0, programs, BLOCK):
        at = start + tl.arange(0, BLOCK)  # [BLOCK]
        inside, part = at < programs, parts_ptr + at * PART
        n = tl.load(part, mask=inside, other=0)
        count += n
        total += n * (tl.load(part + 1, mask=inside, other=0) - first)
        zeros += tl.load(part + 3, mask=inside, other=0)
        bad += tl.load(part + 4, mask=inside, other=0)
        largest = tl.maximum(largest, tl.load(part + 5, mask=inside, other=0))
    n, bad_count = tl.sum(count, axis=0), tl.sum(bad, axis=0)
    mean = first + tl.sum(total, axis=0) / tl.maximum(n, 1)
    squares = tl.zeros([BLOCK], tl.float64)
    for start in range(0, programs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside, part = at < programs, parts_ptr + at * PART
        here, apart = tl.load(part, mask=inside, other=0), tl.load(part + 1, mask=inside, other=0) - mean
        squares += tl.where(here > 0, tl.load(part + 2, mask=inside, other=0) + here * apart * apart, 0)
    bins = tl.zeros([BINS], tl.int64)
    for start in range(0, programs, ROWS):
        at = start + tl.arange(0, ROWS)  # [ROWS]
        place = at.to(tl.int64)[:, None] * BINS + tl.arange(0, BINS)[None, :]
        bins += tl.sum(tl.load(bins_ptr + place, mask=(at < programs)[:, None], other=0), axis=0)
    alive = tl.zeros([BLOCK], tl.int64)
    for start in range(0, channels, BLOCK):
        at = start + tl.arange(0, BLOCK)
        alive += tl.load(alive_ptr + at, mask=at < channels, other=0).to(tl.int64)
    limit = tl.load(stats_ptr + LIMIT)
    share = bins.to(tl.float64) / tl.maximum(n, 1)
    entropy = -tl.sum(tl.where(bins > 0, share * tl.log(tl.where(bins > 0, share, 1)), 0), axis=0)
    abs_max = tl.max(largest, axis=0)
    faded = tl.where((limit > 0) & (limit <= LARGEST), decay * limit, 0.0).to(tl.float64)
    of = tl.zeros([], tl.float64) + channels
    dead = (of - tl.sum(alive, axis=0).to(tl.float64)) / tl.maximum(of, 1)
    _put(stats_ptr, 0, n > 0, mean)
    _put(stats_ptr, 1, n > 0, tl.sum(squares, axis=0) / tl.maximum(n, 1))
    _put(stats_ptr, 2, n > 0, tl.sum(zeros, axis=0) / tl.maximum(n, 1))
    _put(stats_ptr, 3, n + bad_count > 0, dead)
    _put(stats_ptr, 4, (n > 0) & _measures(limit), entropy)
    _put(stats_ptr, 5, n > 0, abs_max)
    _put(stats_ptr, 6, n >= 0, bad_count)
    tl.store(stats_ptr + LIMIT, tl.where(n > 0, tl.maximum(abs_max, faded), limit.to(tl.float64)).to(tl.float32))


@triton.jit
def _put(stats_ptr, column: tl.constexpr, there, value):
    tl.store(stats_ptr + column, tl.where(there, value, float("nan")).to(tl.float32))


def seed_stats(values: Tensor, spans: list[int], channel_dim: int, decay: float, stats: Tensor) -> None:
    """See esper.ops.seed_stats; `spans` is start and stop of each slot in turn, in channels."""
    rows, width, unit = _matrix(values, channel_dim)
    for slot, (start, stop) in enumerate(zip(spans[::2], spans[1::2], strict=True)):
        narrow = (stop - start) * unit
        cols = min(TILE, triton.next_power_of_2(max(narrow, 1)))
        down = TILE // cols
        tiles = triton.cdiv(rows, down) * triton.cdiv(narrow, cols)
        programs = max(1, min(tiles, PROGRAMS))
        parts = torch.empty(programs, PART.value, dtype=torch.float64, device=values.device)
        bins = torch.empty(programs, BINS.value, dtype=torch.int64, device=values.device)
        alive = torch.zeros(max(stop - start, 1), dtype=torch.int8, device=values.device)
        row = stats[slot]
        with device_of(values):
            count_kernel[(programs,)](
                values, row, parts, bins, alive, rows, width, start * unit, narrow, max(unit, 1), tiles,
                MATH=math_type(values), ROWS=down, COLS=cols,
            )  # fmt: skip
            join_kernel[(1,)](parts, bins, alive, row, programs, stop - start, decay, BLOCK=JOIN, ROWS=32)


def _matrix(t: Tensor, channel_dim: int) -> tuple[int, int, int]:
    """(rows, width, columns per channel) in memory order."""
    order = sorted(range(t.ndim), key=lambda d: -t.stride(d))  # slowest in memory first
    place = order.index(channel_dim)
    rows, unit = 1, 1
    for d in order[:place]:
        rows *= t.shape[d]
    for d in order[place + 1 :]:
        unit *= t.shape[d]
    return rows, t.shape[channel_dim] * unit, unit


def specialisations() -> list[Specialisation]:
    """Rows of TILE columns or more; any number of channels."""
    sizes = dict.fromkeys(("rows", "width", "begin", "narrow", "unit", "tiles"), "i32")
    passed: dict[str, str | tuple[str, ...]] = {
        "stats_ptr": "*fp32", "parts_ptr": "*fp64", "bins_ptr": "*i64", "alive_ptr": "*i8",
    }  # fmt: skip
    made = [
        Specialisation(
            "seed_stats_join", join_kernel, {**passed, "programs": "i32", "channels": "i32", "decay": "fp32"},
            {"BLOCK": JOIN, "ROWS": 32}, tuple(passed), vectorised=False,
        )
    ]  # fmt: skip
    for dtype in ("fp32", "bf16", "fp16"):
        signature = {"values_ptr": f"*{dtype}", **passed, **sizes}
        aligned = ("values_ptr", *passed, "width", "begin", "narrow")
        constants: dict[str, object] = {"MATH": tl.float32, "ROWS": 1, "COLS": TILE}
        made.append(Specialisation(f"seed_stats_count_{dtype}", count_kernel, signature, constants, aligned))
    return made
