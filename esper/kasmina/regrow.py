"""Give a freshly built model the grafts a run had, in the order they were inserted.

Used wherever a run is made again from data: nursery workers, resume, rollback, rebuild.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from esper.errors import NotFound
from esper.host.forward import attach
from esper.host.fused import update_fused_paths
from esper.host.graft import Graft, Strategy
from esper.host.sites import Site
from esper.host.surgery import add_newborns, home_group
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import SeedId, State


@dataclass(frozen=True, slots=True)
class GraftSpec:
    """One graft in a host, enough to build it again; its weights come from a snapshot."""

    seed: SeedId
    artifact_id: str
    state: State
    strategy: Strategy = Strategy.RESIDUAL
    span: tuple[int, int] | None = None
    folded: bool = False
    inserted_step: int = 0
    alpha: float = 1.0
    blueprint_id: str = ""
    frozen: bool = False


def regrow(
    model: nn.Module,
    sites: Mapping[str, Site],
    specs: Iterable[GraftSpec],
    kernels: Mapping[str, Kernel],
    optimizer: Optimizer | None = None,
) -> dict[SeedId, Graft]:
    """Attach a graft for every spec that is not folded; weights are fresh until a snapshot is restored.

    Raises NotFound for a kernel that is not at hand; nothing has changed then.
    """
    specs = list(specs)
    need_kernels(specs, kernels)
    grown = {}
    for spec in specs:
        if spec.folded:
            continue
        site = sites[spec.seed.site]
        alpha = torch.tensor(spec.alpha, dtype=torch.float32, device=device_of(model))
        graft = born(kernels[spec.artifact_id], 0, site, model, alpha, spec.strategy, spec.span)
        if spec.state is State.FOSSILIZED:
            graft.settle()
            graft.requires_grad_(not spec.frozen)
        attach(site, spec.seed.slot, graft)
        if optimizer is not None and not spec.frozen:
            add_newborns(optimizer, graft.parameters(), home_group(optimizer, model, site.module))
        grown[spec.seed] = graft
    update_fused_paths(model, sites.values())
    return grown


def born(
    kernel: Kernel,
    drawn: int,
    site: Site,
    model: nn.Module,
    alpha: torch.Tensor,
    strategy: Strategy,
    span: tuple[int, int] | None,
) -> Graft:
    """A graft with first weights of its own, on the model's device and in its site's element type. Not attached."""
    body = kernel.body(drawn, device_of(model), strategy)
    return Graft(body, site.layout, alpha, span=span, strategy=strategy).to(dtype_of(site, model))


def need_kernels(specs: Iterable[GraftSpec], kernels: Mapping[str, Kernel]) -> None:
    """Raise NotFound unless the kernel of every graft that is not folded is at hand."""
    for spec in specs:
        if not spec.folded and spec.artifact_id not in kernels:
            raise NotFound(
                f"kernel {spec.artifact_id} of seed {spec.seed} is not at hand; fetch it from the library first"
            )


def dtype_of(site: Site, model: nn.Module) -> torch.dtype:
    """Element type of a new graft: that of the site's parameters now.

    A site without any keeps the type it was proved with, unless the model was converted since.
    """
    own = [p.dtype for p in site.module.parameters() if p.is_floating_point()]
    present = [p.dtype for p in model.parameters() if p.is_floating_point()]
    if own:
        return own[0]
    return site.interface.dtype if site.interface.dtype in present or not present else present[0]


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
