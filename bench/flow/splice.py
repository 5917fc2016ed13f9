"""A seed opened for good, and the same branch written out by hand."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.blueprint.canonical import blueprint_id
from esper.host.graft import Graft
from esper.host.sites import Site
from esper.karn.templates import TEMPLATES
from esper.kasmina.executor import Assignment
from esper.kasmina.handle import ModelHandle
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import SeedId

BLUEPRINT = "bottleneck_mlp"
_ARTIFACT = "0" * 64  # this kernel was never compiled

Branch = Callable[[Tensor], Tensor]  # over the last dimension


def insert_seed(handle: ModelHandle, name: str, title: str, optimizer: Optimizer, ramp_steps: int) -> Graft:
    """Lead a site's first seed into the host with a template's blueprint, newborn at alpha 0."""
    executor, seed = handle.executor, SeedId(name, 0)
    graph = TEMPLATES[title].graph
    executor.germinate([Assignment(seed, _ARTIFACT)], "bench", 0, "to be compared")
    executor.loaded(seed, Kernel(_ARTIFACT, blueprint_id(graph), graph, executor.sites[name].interface), 0)
    return executor.insert(seed, optimizer, 0, ramp_steps, "to be compared")


def draw(graft: Graft, seed: int) -> None:
    """Weights such as no newborn has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in graft.body.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def open_seed(handle: ModelHandle, name: str) -> Branch:
    """Insert a bottleneck at a site, its weights drawn, at alpha 1. Returns what it must compute."""
    graft = insert_seed(handle, name, BLUEPRINT, torch.optim.SGD(handle.model.parameters(), lr=0.1), 1)
    draw(graft, seed=5)
    handle.executor.step_ramps(1)
    weights = {n: p.detach().clone() for n, p in graft.body.named_parameters()}

    def branch(x: Tensor) -> Tensor:
        hidden = F.gelu(x @ weights["expand_weight"].T + weights["expand_bias"])
        return hidden @ weights["project_weight"].T + weights["project_bias"]

    return branch


def splice(model: nn.Module, site: Site, branch: Branch) -> None:
    """Have a plain model add the branch to the site's output, by torch's own hook."""

    def add(_module: nn.Module, _args: object, output: object) -> object:
        host = output[0] if isinstance(output, tuple) else output
        assert isinstance(host, Tensor)
        dim = site.layout.channel_dim
        grown = host + branch(host.movedim(dim, -1)).movedim(-1, dim)
        return (grown, *output[1:]) if isinstance(output, tuple) else grown

    model.get_submodule(site.name).register_forward_hook(add)


def is_close(a: Tensor, b: Tensor, tolerance: float, floor: float = 0.0) -> bool:
    """Whether two tensors agree to `tolerance` of the largest value, or of `floor` if that is larger."""
    if a.shape != b.shape or not a.is_floating_point():
        return a.shape == b.shape and torch.equal(a, b)
    scale = float(a.abs().max()) if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0, atol=tolerance * max(scale, floor)))
