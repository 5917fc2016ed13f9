"""A kernel that may run here: verified, parsed, and in its compiled form where it has one."""

import hashlib
from dataclasses import dataclass

import torch

from esper.blueprint.infer import infer
from esper.blueprint.initialise import initialise, uniform_bound
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph, Initialiser
from esper.blueprint.lower import Lowered, lower
from esper.blueprint.operators import OPERATORS
from esper.blueprint.plan import plan
from esper.host.graft import Form, Strategy


@dataclass(frozen=True, slots=True)
class Kernel:
    """What an artifact becomes once it is loaded."""

    artifact_id: str
    blueprint_id: str
    graph: Graph
    interface: Interface
    form: Form | None = None  # compiled equal of the body: form(h, *parameters)
    chosen: str = "body"  # which form that is: "body" (none), "script" or "fused"

    @property
    def parameter_count(self) -> int:
        return infer(self.graph, self.interface).parameter_count

    def body(self, weights_seed: int, device: torch.device, strategy: Strategy = Strategy.RESIDUAL) -> Lowered:
        """A new body with its own first weights."""
        body = lower(self.graph, self.interface)
        first_weights(body, torch.Generator().manual_seed(weights_seed), strategy)
        return body.to(device)


def first_weights(body: Lowered, generator: torch.Generator, strategy: Strategy) -> None:
    """Draw a body's first values, in place.

    A gated graft starts behind a gate of 0. Were its branch 0 as well, neither would ever
    get a gradient, so that weights the IR starts at zero are drawn: ones for a scale per
    channel, LeCun uniform for a matrix.
    """
    initialise(body, generator)
    if strategy is not Strategy.GATED:
        return
    form = plan(body.graph, body.interface).form
    weights = {
        place
        for step in form.steps
        for role, place in zip(OPERATORS[step.node.operator].roles, step.parameters, strict=False)
        if role.name.endswith("weight")
    }
    with torch.no_grad():
        for place, tensor in enumerate(body.ordered_parameters()):
            if place not in weights or form.parameters[place].initialiser is not Initialiser.ZEROS:
                continue
            if tensor.ndim == 1:
                tensor.fill_(1)
            else:
                bound = uniform_bound(Initialiser.LECUN_UNIFORM, tuple(tensor.shape))
                drawn = torch.empty(tensor.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
                tensor.copy_(drawn)


def weights_seed(run_seed: int, seed: str, artifact_id: str, event_id: str) -> int:
    """Random seed of a graft's hidden weights: distinct per run, seed, kernel and growth event."""
    text = f"{run_seed}/{seed}/{artifact_id}/{event_id}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
