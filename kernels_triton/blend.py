"""Triton implementation of esper.ops.blend. The definition is `blend_reference` there.

Tensors are seen as rows x width in memory order, one channel being `unit` neighbouring columns, so a slot's channels
are a range of columns whatever the layout. One launch serves all slots. Shapes and layout are the caller's promise:
esper.ops checks them and passes dense tensors of one memory order.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels_triton.matrix import device_of, empty_chunk, fold, math_type, pairs
from kernels_triton.specialisation import Specialisation

BLOCK = 1024  # elements per program. Untuned: choose with bench/ops/bench_blend.py on the target device
SUM_BLOCK = 1024


@triton.jit
def forward_kernel(
    host_ptr,
    seed_ptrs,
    alphas_ptr,
    out_ptr,
    rows,
    width,
    begins,
    ends,
    SLOTS: tl.constexpr,
    CONVEX: tl.constexpr,
    MATH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    across = tl.cdiv(width, COLS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    col = (tl.program_id(0) % across).to(tl.int64) * COLS + tl.arange(0, COLS)  # [COLS]
    inside = (row < rows)[:, None] & (col < width)[None, :]  # [ROWS, COLS]
    at = row[:, None] * width + col[None, :]
    out = tl.load(host_ptr + at, mask=inside, other=0).to(MATH)
    for s in tl.static_range(SLOTS):
        begin, end = begins[s], ends[s]
        covered = inside & ((col >= begin) & (col < end))[None, :]
        at_seed = row[:, None] * (end - begin) + (col - begin)[None, :]
        seed = tl.load(seed_ptrs[s] + at_seed, mask=covered, other=0).to(MATH)
        alpha = tl.load(alphas_ptr + s).to(MATH)
        if CONVEX:  # from the nearer end, so that alpha 0 and 1 give host and seed exactly
            step = tl.where(alpha < 0.5, alpha, alpha - 1)
            blended = tl.where(alpha < 0.5, out, seed) + step * (seed - out)
        else:
            blended = out + alpha * seed
        out = tl.where(covered, blended, out)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["active"])
def in_place_kernel(
    host_ptr,
    seed_ptrs,
    alphas_ptr,
    states_ptr,
    active,
    rows,
    width,
    begins,
    ends,
    SLOTS: tl.constexpr,
    CONVEX: tl.constexpr,
    MATH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Of columns that no slot in `active` covers neither host nor seed is touched."""
    across = tl.cdiv(width, COLS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    col = (tl.program_id(0) % across).to(tl.int64) * COLS + tl.arange(0, COLS)  # [COLS]
    inside = (row < rows)[:, None] & (col < width)[None, :]  # [ROWS, COLS]
    at = row[:, None] * width + col[None, :]
    touched = inside & False
    for s in tl.static_range(SLOTS):
        touched |= inside & ((col >= begins[s]) & (col < ends[s]) & takes_part(states_ptr + s, active))[None, :]
    out = tl.load(host_ptr + at, mask=touched, other=0).to(MATH)
    for s in tl.static_range(SLOTS):
        begin, end = begins[s], ends[s]
        covered = inside & ((col >= begin) & (col < end) & takes_part(states_ptr + s, active))[None, :]
        at_seed = row[:, None] * (end - begin) + (col - begin)[None, :]
        seed = tl.load(seed_ptrs[s] + at_seed, mask=covered, other=0).to(MATH)
        alpha = tl.load(alphas_ptr + s).to(MATH)
        if CONVEX:
            step = tl.where(alpha < 0.5, alpha, alpha - 1)
            blended = tl.where(alpha < 0.5, out, seed) + step * (seed - out)
        else:
            blended = out + alpha * seed
        out = tl.where(covered, blended, out)
    tl.store(host_ptr + at, out.to(host_ptr.dtype.element_ty), mask=touched)


@triton.jit
def takes_part(state_ptr, active):
    """Whether the bit of a slot's state, 0 to 62, is set in `active`."""
    state = tl.load(state_ptr).to(tl.int64)
    bit = (active.to(tl.int64) >> tl.minimum(state, 62)) & 1
    return (state < 63) & (bit != 0)


@triton.jit
def backward_kernel(
    grad_ptr,
    host_ptr,
    seed_ptrs,
    alphas_ptr,
    d_host_ptr,
    d_seed_ptrs,
    shares_ptr,
    rows,
    width,
    begins,
    ends,
    SLOTS: tl.constexpr,
    CONVEX: tl.constexpr,
    SUMS: tl.constexpr,
    MATH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    across = tl.cdiv(width, COLS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    col = (tl.program_id(0) % across).to(tl.int64) * COLS + tl.arange(0, COLS)  # [COLS]
    inside = (row < rows)[:, None] & (col < width)[None, :]  # [ROWS, COLS]
    at = row[:, None] * width + col[None, :]
    grad = tl.load(grad_ptr + at, mask=inside, other=0).to(MATH)
    d_host = grad
    if CONVEX and SUMS:
        host = tl.load(host_ptr + at, mask=inside, other=0).to(MATH)
    for s in tl.static_range(SLOTS):
        begin, end = begins[s], ends[s]
        covered = inside & ((col >= begin) & (col < end))[None, :]
        at_seed = row[:, None] * (end - begin) + (col - begin)[None, :]
        d_seed = tl.load(alphas_ptr + s).to(MATH) * grad
        tl.store(d_seed_ptrs[s] + at_seed, d_seed.to(grad_ptr.dtype.element_ty), mask=covered)
        if CONVEX:
            d_host = tl.where(covered, grad - d_seed, d_host)
        if SUMS:
            seed = tl.load(seed_ptrs[s] + at_seed, mask=covered, other=0).to(MATH)
            if CONVEX:
                seed -= host
            share = tl.sum(tl.sum(tl.where(covered, grad * seed, 0), axis=1), axis=0)
            tl.store(shares_ptr + s * tl.num_programs(0).to(tl.int64) + tl.program_id(0), share)
    if CONVEX:
        tl.store(d_host_ptr + at, d_host.to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def sum_kernel(shares_ptr, d_alphas_ptr, programs, BLOCK: tl.constexpr):
    """d_alphas[slot] = the sum of its programs' shares, in a fixed order."""
    first = tl.program_id(0).to(tl.int64) * programs
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, programs, BLOCK):
        at = start + tl.arange(0, BLOCK)  # [BLOCK]
        total += tl.load(shares_ptr + first + at, mask=at < programs, other=0).to(tl.float64)
    tl.store(d_alphas_ptr + tl.program_id(0), tl.sum(total, axis=0).to(d_alphas_ptr.dtype.element_ty))


def blend(
    host: Tensor, seeds: list[Tensor], alphas: Tensor, spans: list[int], channel_dim: int, convex: bool
) -> Tensor:
    """See esper.ops.blend; `spans` is start and stop of each slot in turn, in channels."""
    out = torch.empty_like(host)
    rows, width, begins, ends = fold(host, spans, channel_dim)
    if out.numel():
        tile, grid = _tile(rows, width)
        with device_of(host):
            forward_kernel[grid](
                host, tuple(seeds), alphas, out, rows, width, begins, ends,
                SLOTS=len(begins), CONVEX=convex, MATH=math_type(host), **tile,
            )  # fmt: skip
    return out


def blend_(
    host: Tensor,
    seeds: list[Tensor],
    alphas: Tensor,
    states: Tensor,
    active: int,
    spans: list[int],
    channel_dim: int,
    convex: bool,
) -> None:
    """See esper.ops.blend_."""
    rows, width, begins, ends = fold(host, spans, channel_dim)
    if host.numel():
        tile, grid = _tile(rows, width)
        with device_of(host):
            in_place_kernel[grid](
                host, tuple(seeds), alphas, states, active, rows, width, begins, ends,
                SLOTS=len(begins), CONVEX=convex, MATH=math_type(host), **tile,
            )  # fmt: skip


def blend_backward(
    grad: Tensor,
    host: Tensor | None,
    seeds: list[Tensor],
    alphas: Tensor,
    spans: list[int],
    channel_dim: int,
    convex: bool,
) -> list[Tensor]:
    """[d_host, if convex], one d_seed per slot, [d_alphas, if seeds are given]."""
    rows, width, begins, ends = fold(grad, spans, channel_dim)
    tile, grid = _tile(rows, width)
    d_host = [torch.empty_like(grad)] if convex else []
    d_seeds = [empty_chunk(grad, channel_dim, stop - start) for start, stop in pairs(spans)]
    d_alphas = [torch.zeros_like(alphas)] if seeds else []
    if grad.numel():
        shares = alphas.new_empty(len(begins) * grid[0] if seeds else 0)
        # a pointer that the kernel's constants rule out is never read; any tensor will do for it
        with device_of(grad):
            backward_kernel[grid](
                grad, grad if host is None else host, tuple(seeds) or tuple(d_seeds), alphas,
                d_host[0] if convex else grad, tuple(d_seeds), shares, rows, width, begins, ends,
                SLOTS=len(begins), CONVEX=convex, SUMS=bool(seeds), MATH=math_type(grad), **tile,
            )  # fmt: skip
            if seeds:
                sum_kernel[(len(begins),)](shares, d_alphas[0], grid[0], BLOCK=SUM_BLOCK)
    return [*d_host, *d_seeds, *d_alphas]


def _tile(rows: int, width: int) -> tuple[dict[str, int], tuple[int]]:
    """The kernels' tile shape, and the grid for it."""
    cols = min(BLOCK, triton.next_power_of_2(max(width, 1)))
    down = BLOCK // cols
    return {"ROWS": down, "COLS": cols}, (triton.cdiv(rows, down) * triton.cdiv(width, cols),)


_ANY = ("rows", "active", "states_ptr")  # what need not be divisible by 16: states are a view of a model's table


def specialisations() -> list[Specialisation]:
    """One and two slots, both forms, alphas with and without a gradient; rows of BLOCK columns or more."""
    made = [
        Specialisation(
            "blend_sum_fp32", sum_kernel, {"shares_ptr": "*fp32", "d_alphas_ptr": "*fp32", "programs": "i32"},
            {"BLOCK": SUM_BLOCK}, ("shares_ptr", "d_alphas_ptr"), vectorised=False,
        )
    ]  # fmt: skip
    for dtype, slots, convex in itertools.product(("fp32", "bf16", "fp16"), (1, 2), (False, True)):
        form = f"{dtype}_{slots}_{'convex' if convex else 'residual'}"
        made.append(_specialised(f"blend_forward_{form}", forward_kernel, dtype, slots, convex=convex))
        made.append(_specialised(f"blend_in_place_{form}", in_place_kernel, dtype, slots, convex=convex))
        for sums in (False, True):
            name = f"blend_backward_{form}" + ("_alphas" if sums else "")
            made.append(_specialised(name, backward_kernel, dtype, slots, convex=convex, sums=sums))
    return made


def _specialised(
    name: str, kernel: triton.JITFunction, dtype: str, slots: int, *, convex: bool, sums: bool = False
) -> Specialisation:
    element, columns = f"*{dtype}", ("i32",) * slots
    kinds: dict[str, str | tuple[str, ...]] = {
        "host_ptr": element, "grad_ptr": element, "out_ptr": element, "d_host_ptr": element,
        "seed_ptrs": (element,) * slots, "d_seed_ptrs": (element,) * slots, "alphas_ptr": "*fp32",
        "shares_ptr": "*fp32", "rows": "i32", "width": "i32", "begins": columns, "ends": columns,
        "states_ptr": "*u8", "active": "i64",
    }  # fmt: skip
    values = {"SLOTS": slots, "CONVEX": convex, "SUMS": sums, "MATH": tl.float32, "ROWS": 1, "COLS": BLOCK}
    signature = {argument: kinds[argument] for argument in kernel.arg_names if argument in kinds}
    constants = {argument: values[argument] for argument in kernel.arg_names if argument in values}
    return Specialisation(name, kernel, signature, constants, tuple(a for a in signature if a not in _ANY))
