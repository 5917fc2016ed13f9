"""advance_state: one training step for all seeds of a model, in one launch.

    step      += 1
    alphas[s]  = clamp((step - ramp_begins[s]) / ramp_steps[s], 0, 1)    where the seed ramps
    ages[s]   += 1                                                       where the seed counts

A seed ramps where its state's bit is set in `ramping` and ramp_steps[s] >= 0: a negative number means that its ramp
rests; of a ramp of 0 steps alpha is 1. It counts where its state's bit is set in `counting`. What neither ramps nor
counts is not written.

The quotient is taken in float64 and rounded once, so it is `esper.kasmina.schedule.ramp` in float32, bit for bit,
while steps are below 2**53. Only the table is read and written: about 37 bytes a seed.

Not differentiable. Tensors are written in place and their versions counted on, so a backward that saved the alphas of
an earlier step raises. The step lives on the device: a captured CUDA graph moves it on at each replay.
"""

import torch
from torch import Tensor

from esper.ops import backends
from esper.ops.advance_state_arguments import check_apart, check_no_gradient, check_state
from esper.ops.gates import among


def advance_state(
    alphas: Tensor,
    ages: Tensor,
    step: Tensor,
    states: Tensor,
    ramp_begins: Tensor,
    ramp_steps: Tensor,
    *,
    ramping: int,
    counting: int,
) -> None:
    """Move a seed table of S seeds on by one step, in place.

    alphas       float32 [S], written: 0 to 1
    ages         int64 [S], written: steps counted
    step         int64 [1], written: the training step
    states       uint8 [S], lifecycle states, 0 to 62; a greater one neither ramps nor counts
    ramp_begins  int64 [S], step at which alpha is 0
    ramp_steps   int64 [S], steps from alpha 0 to 1; negative: the ramp rests
    ramping      bit mask of the states that ramp, see `esper.ops.state_mask`
    counting     bit mask of the states that count

    Raises ShapeMismatch, or InvalidRequest for a dtype, a device, gaps, a mask, a tensor that needs a gradient, or
    written tensors that share memory; Unavailable where ESPER_KERNELS forces a backend that is absent.
    """
    arguments = (alphas, ages, step, states, ramp_begins, ramp_steps, ramping, counting)
    if torch.compiler.is_compiling():
        check_state(*arguments)
        advance_state_reference(*arguments)
    elif type(alphas) is not Tensor or torch._C._are_functorch_transforms_active():
        torch.ops.esper.advance_state(*arguments)
    else:
        run(*arguments)


def advance_state_reference(
    alphas: Tensor,
    ages: Tensor,
    step: Tensor,
    states: Tensor,
    ramp_begins: Tensor,
    ramp_steps: Tensor,
    ramping: int,
    counting: int,
) -> None:
    """The definition: every other implementation is tested against it."""
    step.add_(1)
    share = (step.double() - ramp_begins.double()) / ramp_steps.double()
    made = torch.where(ramp_steps == 0, 1.0, share.clamp(0.0, 1.0)).float()
    alphas.copy_(torch.where(among(states, ramping) & (ramp_steps >= 0), made, alphas))
    ages.add_(among(states, counting))


def run(
    alphas: Tensor,
    ages: Tensor,
    step: Tensor,
    states: Tensor,
    ramp_begins: Tensor,
    ramp_steps: Tensor,
    ramping: int,
    counting: int,
) -> None:
    """The chosen implementation, checked. Raises ShapeMismatch and InvalidRequest.

    The library checks for itself, in a twentieth of the time, so it is only asked what is wrong when it has refused.
    """
    arguments = (alphas, ages, step, states, ramp_begins, ramp_steps, ramping, counting)
    check_no_gradient(alphas)
    implementation = backends.pick("advance_state", "cpu" if alphas.is_cpu else alphas.device.type)
    try:
        if not backends.checks_itself(implementation):
            check_state(*arguments)
            check_apart(*arguments[:6])
        implementation(*arguments)
    except (RuntimeError, TypeError):
        check_state(*arguments)
        check_apart(*arguments[:6])
        raise
    torch.autograd.graph.increment_version((alphas, ages, step))
