"""What a blueprint costs at an interface, exactly, without building a tensor.

Counting: a multiply-add is 2 operations; matrix products and convolutions count as
torch.utils.flop_counter counts them (a convolution's taps outside the input and the
masked part of attention's scores count). Elementwise operators count 1 for each element of
their result, whatever the function; the others as the table in docs/blueprint-ir.md says.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.blueprint.operators import OPERATORS
from esper.blueprint.plan import plan
from esper.blueprint.signature import Cost, Count
from esper.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Inference:
    """Sizes and costs of one forward.

    The per-position figures are for a batch element with `positions` positions, rounded
    up: a pooled value's cost is shared among them, attention's grows with them.
    `activation_elements_per_position` counts every node's result once.
    """

    parameter_count: int
    forward_flops_per_position: int
    activation_elements_per_position: int
    parameter_shapes: Mapping[str, tuple[int, ...]]  # by name, in canonical order
    positions: int
    cost: Cost
    activations: Count

    def forward_flops(self, batch: int, positions: int) -> int:
        """Operations of one forward over `batch` elements with `positions` positions each."""
        return batch * self.cost.products.plus(self.cost.elementwise).at(positions)

    def activation_elements(self, batch: int, positions: int) -> int:
        """Elements of all node results of one forward."""
        return batch * self.activations.at(positions)


def infer(graph: Graph, interface: Interface, positions: int = 1) -> Inference:
    """Cost of `graph` at `interface`. Raises InvalidBlueprint where it cannot be lowered there."""
    if positions < 1:
        raise InvalidRequest(f"positions is {positions}; it must be at least 1")
    concrete = plan(graph, interface)
    cost, activations = Cost(), Count()
    for step, binding in zip(concrete.form.steps, concrete.bindings, strict=True):
        more = OPERATORS[step.node.operator].cost(binding)
        cost = Cost(cost.products.plus(more.products), cost.elementwise.plus(more.elementwise))
        activations = activations.plus(Count.over(binding.extent, binding.channels))
    return Inference(
        parameter_count=sum(map(math.prod, concrete.shapes)),
        forward_flops_per_position=-(-cost.products.plus(cost.elementwise).at(positions) // positions),
        activation_elements_per_position=-(-activations.at(positions) // positions),
        parameter_shapes=dict(zip(concrete.parameter_names, concrete.shapes, strict=True)),
        positions=positions,
        cost=cost,
        activations=activations,
    )
