"""Compare a compiled form with the reference lowering of its graph: value and every gradient, on drawn inputs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from esper.artifact.script import CompiledForm
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.blueprint.lower import Lowered, lower
from esper.errors import KernelFault

# Largest difference over the largest value of the tensor, in float32: rounding, with the
# sums of backward passes in another order.
TOLERANCE = 1e-4
# (batch, positions): the second call of a shape runs the graph that TorchScript has optimised.
_SHAPES = {
    0: ((3, ()), (3, ()), (1, ())),
    1: ((3, (5,)), (3, (5,)), (1, (3,))),
    2: ((3, (5, 4)), (3, (5, 4)), (1, (3, 3))),
}


def check_agreement(
    graph: Graph, interface: Interface, form: CompiledForm, form_name: str = "TorchScript form"
) -> float:
    """The largest difference seen, relative to the largest value. Raises KernelFault over TOLERANCE, naming the tensor.

    In float32 whatever the interface's type; weights are drawn, so that no gradient is zero because a
    parameter starts at zero.
    """
    wide = Interface(interface.kind, interface.channels, torch.float32, interface.causal)
    generator = torch.Generator().manual_seed(0)
    reference = lower(graph, wide)
    parameters = draw_weights(reference, generator)
    worst = 0.0
    for batch, positions in _SHAPES[wide.kind.position_dims]:
        h = wide.example(batch, *positions, generator=generator)
        want = outcome(lambda h, *p: reference.functional(p, h), h, parameters)
        got = outcome(form, h, parameters)
        for name, seen in zip(tensor_names(reference), differences(got, want), strict=True):
            if not seen <= TOLERANCE:
                raise KernelFault(
                    f"the {form_name} differs from the reference in its {name} by {seen:.3g} of the "
                    f"largest value, at most {TOLERANCE:g}; this is a bug of the forge, not of the blueprint"
                )
            worst = max(worst, seen)
    return worst


def draw_weights(module: Lowered, generator: torch.Generator) -> list[Tensor]:
    """Values for every parameter, none zero, of a size that keeps activations near 1."""
    drawn = []
    for parameter in module.ordered_parameters():
        bound = 1 / math.sqrt(max(1, math.prod(parameter.shape[1:])))
        drawn.append(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator).to(parameter.dtype))
    return drawn


def outcome(call: CompiledForm, h: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Value and gradients by h and each parameter of call(h, *parameters), under fixed, drawn output gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (h, *parameters)]
    out = call(*leaves)
    # drawn, and not e.g. ones, under which the gradient of a normalisation is 0 and all that is seen is rounding
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    # of a scalar: handing `upstream` to autograd makes torch import sympy at its first call, 0.4 s
    return [out.detach(), *torch.autograd.grad((out * upstream).sum(), leaves)]


def tensor_names(module: Lowered) -> list[str]:
    """What `outcome` returns, in words."""
    return ["output", "input gradient", *(f"gradient of {name}" for name in module.parameter_names)]


def differences(got: Sequence[Tensor], want: Sequence[Tensor], floor: float = 1e-3) -> list[float]:
    """`difference` of each pair.

    `floor`: a tensor's largest value counts as at least so much of the largest of all; a gradient that is
    0 in exact arithmetic, as attention's over one position, holds nothing but rounding.
    """
    largest = max((tensor.abs().max().item() for tensor in want if tensor.numel()), default=0.0)
    return [difference(a, b, floor * largest) for a, b in zip(got, want, strict=True)]


def difference(got: Tensor, want: Tensor, smallest: float = 0.0) -> float:
    """Largest difference over the largest value of `want`, which counts as `smallest` at least.

    Infinite for another shape, NaN for NaN.
    """
    if got.shape != want.shape:
        return math.inf
    if not want.numel():
        return 0.0
    scale = max(want.abs().max().item(), smallest)
    gap = (got - want).abs().max().item()
    return gap / scale if scale else gap
