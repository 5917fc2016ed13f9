"""blend_ called on the inputs of blend's tests."""

import torch

from esper.ops import blend_, state_mask

from .blend_cases import Inputs

ON, OFF = 5, 1  # a state that takes part, and one that does not
ACTIVE = state_mask([ON, 6, 62])


def states(*taking: bool, device: str = "cpu") -> torch.Tensor:
    return torch.tensor([ON if takes else OFF for takes in taking], dtype=torch.uint8, device=device)


def in_place(inputs: Inputs, taking: tuple[bool, ...], host: torch.Tensor | None = None) -> torch.Tensor:
    """blend_ into a copy of the inputs' host, or into `host`."""
    case, leaf = inputs.case, inputs.host
    if host is None:  # a node that keeps nothing, so that host is no leaf; dense where the leaf is
        host = leaf * 1.0
    gate = states(*taking, device=leaf.device.type)
    return blend_(
        host, inputs.seeds, inputs.alphas, gate, ACTIVE, case.spans, channel_dim=case.channel_dim, convex=case.convex
    )
