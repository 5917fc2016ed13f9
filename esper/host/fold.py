"""Fold a fossil into its site's own weights where algebra allows.

A branch is affine over channels at each position if its graph holds nothing but
channel-wise linear maps, scales, sums and moves of channels: g(h) = M h + c. Then h + g(h) = (I + M) h + c
is absorbed by a Linear or Conv (rows of the weight are output channels), and by a norm
where M is diagonal. Spatial convolutions are not folded: zero padding at the border
would see other values. The fold is computed in float64 and is exact to rounding.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from esper.blueprint.lower import Lowered
from esper.host.graft import Graft, Strategy
from esper.host.sites import Site

_AFFINE = {"linear", "low_rank", "scale", "bias", "add", "split", "concat", "channel_shuffle"}
_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


def fold(site: Site, graft: Graft, model: nn.Module) -> str:
    """Absorb `graft` into `site.module` of `model`, in place. Returns "" if done, else why the branch must be kept."""
    reason = _obstacle(site, graft, model)
    if reason:
        return reason
    matrix, shift = _affine_form(graft)
    module = site.module
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    norm = isinstance(module, _NORMS)
    if norm and not torch.equal(matrix, torch.diag(matrix.diagonal())):
        return f"a {type(module).__name__} absorbs a scale per channel only"
    if mixed := _groups_mixed(module, matrix):
        return mixed
    if bias is None and bool(shift.any()):
        return f"{site.name} has no bias to absorb the branch's shift"
    grown = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device) + matrix
    with torch.no_grad():
        # a norm's weight is [C], or [..., C] for a LayerNorm over several dimensions
        rows = grown.diagonal() * weight.double() if norm else grown @ weight.double().flatten(1)
        weight.copy_(rows.reshape(weight.shape))
        if bias is not None:
            bias.copy_((grown.diagonal() * bias.double() if norm else grown @ bias.double()) + shift)
    return ""


def _obstacle(site: Site, graft: Graft, model: nn.Module) -> str:
    operators = {node.operator for node in graft.body.graph.nodes}
    if operators - _AFFINE:
        return f"the branch is not affine: it uses {', '.join(sorted(operators - _AFFINE))}"
    if graft.span is not None:
        return "the branch works on a chunk of the channels"
    if graft.strategy is not Strategy.RESIDUAL:
        return f"a {graft.strategy.value} graft is not folded"
    module = site.module
    if sum(isinstance(child, Graft) for child in module.children()) > 1:
        return "the site carries other grafts, which see the branch's output"
    known = next((cls for cls in _DENSE + _NORMS if isinstance(module, cls)), None)
    if known is None or module._parameters.get("weight") is None:
        return f"{site.layer_kind} has no weight of its own that could absorb a branch"
    if type(module).forward is not known.forward:
        return f"{site.layer_kind} computes otherwise than {known.__name__}"
    if module.bias is not None and module._parameters.get("bias") is None:
        return f"{site.layer_kind}'s bias is computed from other parameters"
    still = any(p is not None and not p.requires_grad for p in module._parameters.values())
    if still and any(p.requires_grad for p in graft.parameters()):
        return f"{site.name} does not learn, and the branch does"
    if shared := _sharer(model, module):
        return f"{site.name} shares its weights with {shared}, which would change too"
    return ""


def _sharer(model: nn.Module, module: nn.Module) -> str:
    """Name of another module that owns one of `module`'s weights; empty where they are its own."""
    own = {id(p) for p in (module._parameters.get("weight"), module._parameters.get("bias")) if p is not None}
    others = ((name, other) for name, other in model.named_modules() if other is not module)
    return next((name for name, other in others if own & _ids(other._parameters.values())), "")


def _ids(parameters: Iterable[nn.Parameter | None]) -> set[int]:
    return {id(p) for p in parameters if p is not None}


def _groups_mixed(module: nn.Module, matrix: Tensor) -> str:
    """A grouped convolution's channels see the inputs of their own group only."""
    groups = int(getattr(module, "groups", 1))
    if groups == 1 or not isinstance(module, _DENSE):
        return ""
    size = len(matrix) // groups
    blocks = torch.block_diag(*[matrix[i : i + size, i : i + size] for i in range(0, len(matrix), size)])
    return "" if torch.equal(blocks, matrix) else f"the branch mixes the {groups} groups of a {type(module).__name__}"


def _affine_form(graft: Graft) -> tuple[Tensor, Tensor]:
    """M [C, C] and c [C] of g(h) = M h + c, in float64, from the graph's value at 0 and at each unit vector."""
    body: Lowered = graft.body
    channels = body.interface.channels
    parameters = [p.detach().double() for p in body.ordered_parameters()]
    device = parameters[0].device
    probes = torch.cat([torch.zeros(1, channels), torch.eye(channels)]).double().to(device)  # [1 + C, C]
    one_position = body.interface.shape(1 + channels, *[1] * body.interface.kind.position_dims)
    with torch.no_grad():
        out = body.functional(parameters, probes.reshape(one_position)).reshape(1 + channels, channels)
    shift = out[0]
    return (out[1:] - shift).T, shift
