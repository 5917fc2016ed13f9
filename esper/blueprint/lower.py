"""The reference lowering: a blueprint at an interface as an nn.Module, without generated code."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph, Initialiser
from esper.blueprint.plan import Plan, plan

# a parameter that is drawn holds NaN until `initialise` or a load: forgetting both must not look like training
_FILL = {Initialiser.ZEROS: 0.0, Initialiser.ONES: 1.0}
_UNDRAWN = float("nan")


class _Call(NamedTuple):
    function: Callable[..., Tensor]
    arguments: tuple[int, ...]  # places in [registers..., parameters...]
    result: int  # register


class Lowered(nn.Module):
    """g(h) of h's shape; parameters under the IR's names. Made by `lower`.

    `parameter_names` is the canonical order, that of `functional`'s parameters and of the
    emitted function's arguments. Nothing depends on the tensors' sizes, device or dtype.
    """

    def __init__(self, graph: Graph, interface: Interface, device: torch.device | str = "cpu") -> None:
        super().__init__()
        concrete = plan(graph, interface)
        self.graph = graph
        self.interface = interface
        self.parameter_names = concrete.parameter_names
        self._registers, self._calls = _allocate(concrete)
        for parameter, shape in zip(concrete.form.parameters, concrete.shapes, strict=True):
            value = torch.full(shape, _FILL.get(parameter.initialiser, _UNDRAWN), dtype=interface.dtype, device=device)
            self.register_parameter(parameter.name, nn.Parameter(value))

    def forward(self, h: Tensor) -> Tensor:
        """[same shape as h], h being a tensor of `interface`."""
        return self.functional(self.ordered_parameters(), h)

    def functional(self, parameters: Sequence[Tensor], h: Tensor) -> Tensor:
        """g(h) with other tensors in the parameters' places, in the order of `parameter_names`."""
        values: list[Tensor] = [h] * self._registers
        values.extend(parameters)
        for function, arguments, result in self._calls:
            values[result] = function(*[values[i] for i in arguments])
        return values[self._calls[-1].result]

    def ordered_parameters(self) -> list[Tensor]:
        """The module's own parameters in the order of `parameter_names`."""
        own: dict[str, Any] = self._parameters
        return [own[name] for name in self.parameter_names]

    def extra_repr(self) -> str:
        return f"{self.interface}, {len(self._calls)} operators"


def lower(graph: Graph, interface: Interface, device: torch.device | str = "cpu") -> Lowered:
    """Build the module. Zeros and ones are filled in; drawn parameters are NaN until `initialise` or a load.

    Raises InvalidBlueprint where `graph` cannot be lowered for `interface`.
    """
    return Lowered(graph, interface, device)


def _allocate(concrete: Plan) -> tuple[int, tuple[_Call, ...]]:
    """How many registers, and the calls over them.

    A register is taken again after its value's last use, so that a forward without grad
    frees what it no longer needs. Values are numbered 0 for h, i for step i.
    """
    steps = concrete.form.steps
    last_use = {i: at for at, step in enumerate(steps) for i in step.inputs}
    register, free, count = {0: 0}, list[int](), 1
    for at, step in enumerate(steps):
        free += [register[i] for i in dict.fromkeys(step.inputs) if last_use[i] == at]
        if not free:
            free, count = [count], count + 1
        register[at + 1] = free.pop()
    calls = []
    for at, (step, form) in enumerate(zip(steps, concrete.forms(), strict=True)):
        arguments = [register[i] for i in step.inputs] + [count + i for i in step.parameters]
        calls.append(_Call(form.call, tuple(arguments), register[at + 1]))
    return count, tuple(calls)
