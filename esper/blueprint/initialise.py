"""Draw a lowered blueprint's first values.

fan_in is the product of a parameter's sizes after the first, at the interface (a 3x3
convolution's weight [O, I, 3, 3] has 9 I; depthwise [C, 1, 3, 3] has 9), and 1 for a
parameter of one dimension.

lecun_uniform: +-sqrt(3 / fan_in), variance 1 / fan_in (LeCun et al. 1998, "Efficient BackProp", sec. 4.6).
he_uniform: +-sqrt(6 / fan_in), variance 2 / fan_in (He et al. 2015, arXiv:1502.01852).
"""

import math

import torch

from esper.blueprint.ir import Initialiser
from esper.blueprint.lower import Lowered
from esper.blueprint.plan import plan


def initialise(module: Lowered, generator: torch.Generator) -> None:
    """Set every parameter of `module` in place, by the IR's initialisers.

    Values are drawn in float32 on the generator's device, in canonical order, and then
    cast: the same generator state gives the same values under any names, dtype or device.
    """
    parameters = plan(module.graph, module.interface).form.parameters
    with torch.no_grad():
        for parameter, tensor in zip(parameters, module.ordered_parameters(), strict=True):
            if parameter.initialiser is Initialiser.ZEROS:
                tensor.zero_()
            elif parameter.initialiser is Initialiser.ONES:
                tensor.fill_(1)
            else:
                bound = uniform_bound(parameter.initialiser, tuple(tensor.shape))
                drawn = torch.empty(tensor.shape, dtype=torch.float32, device=generator.device)
                tensor.copy_(drawn.uniform_(-bound, bound, generator=generator))


def uniform_bound(initialiser: Initialiser, shape: tuple[int, ...]) -> float:
    """Half the width of the interval that values are drawn from."""
    gain = {Initialiser.LECUN_UNIFORM: 3.0, Initialiser.HE_UNIFORM: 6.0}[initialiser]
    return math.sqrt(gain / math.prod(shape[1:]))
