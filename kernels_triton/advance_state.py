"""Triton implementation of esper.ops.advance_state. The definition is `advance_state_reference` there.

Shapes, dtypes and contiguity are the caller's promise: esper.ops checks them.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels_triton.matrix import device_of
from kernels_triton.specialisation import Specialisation

BLOCK = 1024  # seeds per turn


@triton.jit(do_not_specialize=["ramping", "counting"])
def advance_kernel(
    alphas_ptr,
    ages_ptr,
    step_ptr,
    states_ptr,
    ramp_begins_ptr,
    ramp_steps_ptr,
    seeds,
    ramping,
    counting,
    BLOCK: tl.constexpr,
):
    """One program, because all of it must have read the step before it is written."""
    step = tl.load(step_ptr) + 1
    tl.debug_barrier()
    tl.store(step_ptr, step)
    now = step.to(tl.float64)
    ramps = tl.zeros([BLOCK], tl.int64) + ramping
    counts = tl.zeros([BLOCK], tl.int64) + counting
    for first in range(0, seeds, BLOCK):
        at = tl.arange(0, BLOCK).to(tl.int64) + first  # [BLOCK]
        inside = at < seeds
        state = tl.load(states_ptr + at, mask=inside, other=63).to(tl.int64)
        known = inside & (state < 63)  # a state without a bit is in no mask
        bit = tl.where(known, state, 0)
        length = tl.load(ramp_steps_ptr + at, mask=inside, other=-1)
        begin = tl.load(ramp_begins_ptr + at, mask=inside, other=0).to(tl.float64)
        share = (now - begin) / tl.where(length > 0, length, 1).to(tl.float64)
        share = tl.where(length == 0, 1.0, tl.where(share > 1.0, 1.0, tl.where(share > 0.0, share, 0.0)))
        moves = known & (((ramps >> bit) & 1) != 0) & (length >= 0)
        tl.store(alphas_ptr + at, share.to(tl.float32), mask=moves)
        older = known & (((counts >> bit) & 1) != 0)
        age = tl.load(ages_ptr + at, mask=older, other=0)
        tl.store(ages_ptr + at, age + 1, mask=older)


def advance_state(
    alphas: Tensor,
    ages: Tensor,
    step: Tensor,
    states: Tensor,
    ramp_begins: Tensor,
    ramp_steps: Tensor,
    ramping: int,
    counting: int,
) -> None:
    """See esper.ops.advance_state."""
    with device_of(alphas):
        advance_kernel[(1,)](
            alphas, ages, step, states, ramp_begins, ramp_steps, alphas.numel(), ramping, counting, BLOCK=BLOCK
        )


def specialisations() -> list[Specialisation]:
    """The kernel as it is compiled ahead of time: it has one form."""
    signature: dict[str, str | tuple[str, ...]] = {
        "alphas_ptr": "*fp32", "ages_ptr": "*i64", "step_ptr": "*i64", "states_ptr": "*u8", "ramp_begins_ptr": "*i64",
        "ramp_steps_ptr": "*i64", "seeds": "i32", "ramping": "i64", "counting": "i64",
    }  # fmt: skip
    # nothing is assumed aligned: the columns of one buffer need not be
    return [Specialisation("advance_state", advance_kernel, signature, {"BLOCK": BLOCK}, (), vectorised=False)]
