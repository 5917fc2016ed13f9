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


class Routes(nn.Module):
    """A mixture of two experts, whose router's scores leave it beside what is used."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = Router(), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        _, shares = self.router(x)
        out: Tensor = sum(share[:, None] * expert(x) for share, expert in zip(shares.T, self.experts, strict=True))
        return out


class Router(nn.Module):
    """Scores and shares: the first are for a loss, the second for the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.linear(x)
        return scores, scores.softmax(-1)


class Frozen(nn.Module):
    """Features that no gradient passes, and a head on them."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self.features(x)
        out: Tensor = self.head(seen)
        return out


class Packs(nn.Module):
    """Gives an LSTM sequences of two lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
        out: Tensor = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]
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
    "router's scores": (lambda: (Routes(), ["router"], _ROWS), "router (Router)"),
    "layer without grad": (lambda: (Frozen(), None, _ROWS), "features (Linear)"),
    "lstm on a packed batch": (lambda: (Packs(), [nn.LSTM], _TOKENS), "lstm (LSTM)"),
    "nothing matches": (lambda: (nn.Sequential(nn.Linear(4, 4)), [nn.Conv2d], _ROWS), "Conv2d"),
}
