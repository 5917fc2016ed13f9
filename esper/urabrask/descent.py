"""One step of heavy-ball SGD with clipped gradients, for probes that train inside an isolated process.

Written out because torch.optim imports torch's compiler at its first step, more memory and
time than a probe takes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTUM, MAX_NORM = 0.9, 1.0


def descend(loss: Tensor, weights: Sequence[Tensor], velocity: Sequence[Tensor], rate: float) -> None:
    """Move `weights` against the gradient of `loss`, its norm clipped to MAX_NORM; `velocity` has their shapes."""
    gradients = torch.autograd.grad(loss, weights)
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item()
    shrink = min(1.0, MAX_NORM / norm) if norm > 0 else 1.0
    with torch.no_grad():
        for weight, speed, gradient in zip(weights, velocity, gradients, strict=True):
            weight.sub_(speed.mul_(MOMENTUM).add_(gradient, alpha=shrink), alpha=rate)
