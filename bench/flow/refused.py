"""Models that cannot carry seeds where they are asked to, and the name each refusal must give."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bypassed(nn.Module):
    """Uses a layer's weight and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.used(x), self.read.weight)


class Attends(nn.Module):
    """Self-attention, whose output projection torch applies without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x)[0]
        return out


class Shapes(nn.Module):
    """Calls one layer at two ranks, which no one seed can serve."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shared(self.shared(x).mean(1))
        return out


class ChannelsLast(nn.Module):
    """A linear layer over the channels of a map that has them last."""

    def __init__(self) -> None:
        super().__init__()
        self.pointwise = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise(x.permute(0, 2, 3, 1))
        return out


def _scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4)))


_ROWS, _TOKENS = torch.ones(2, 4), torch.ones(2, 3, 4)

# case: (makes model, targets and example; what the refusal names)
REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, Any, Tensor]], str]] = {
    "script module": (lambda: (_scripted(), None, _ROWS), "ScriptModule"),
    "data parallel": (lambda: (nn.DataParallel(nn.Linear(4, 4)), None, _ROWS), "DataParallel"),
    "layer never called": (lambda: (Bypassed(), ["read"], _ROWS), "read"),
    "attention's projection": (lambda: (Attends(), ["attention.out_proj"], _TOKENS), "attention.out_proj"),
    "layer at two ranks": (lambda: (Shapes(), ["shared"], _TOKENS), "shared"),
    "map with channels last": (lambda: (ChannelsLast(), None, torch.ones(2, 4, 3, 3)), "pointwise"),
    "nothing matches": (lambda: (nn.Sequential(nn.Linear(4, 4)), [nn.Conv2d], _ROWS), "Conv2d"),
}
