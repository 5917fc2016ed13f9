"""Architectures built from their configuration, small, without downloaded weights: the form, and those of torch alone.

timm's are left out: it asks for torchvision, whose wheels cannot be installed beside a CPU build of torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.host.sites import Target


@dataclass(frozen=True, slots=True)
class Architecture:
    """`inputs` are keyword arguments. `targets` None: Esper's default, Linear and Conv1d and Conv2d."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, Any]]
    targets: list[Target] | None = None
    causal: str = ""  # the input, [B, T], at whose later positions no earlier output may look; "": there is none
    untraceable: str = ""  # what export must say where it cannot write this as plain torch; "": it can

    def model(self) -> nn.Module:
        """Built anew with the same first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make()


class Tagger(nn.Module):
    """An LSTM and a linear head per position."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, num_layers=2, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.lstm(x)[0])
        return scores


class UNet(nn.Module):
    """One level down, one up, a skip between."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.bottom = nn.Conv2d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join, self.out = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.norm(self.down(x)))
        low = F.relu(self.bottom(F.max_pool2d(skip, 2)))
        joined = torch.cat([skip, self.up(low)], 1)
        image: Tensor = self.out(F.relu(self.join(joined)))
        return image


class EncoderDecoder(nn.Module):
    """nn.Transformer, whose linear layers its fused path passes by in eval: its layers are sites as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(16, 2, 1, 1, 32, dropout=0.1, batch_first=True)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        out: Tensor = self.body(src, tgt)
        return out


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def ids(length: int = 7, vocabulary: int = 60) -> Tensor:
    return torch.randint(1, vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


TORCH = {
    "mlp": Architecture(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4)),
        lambda: {"input": drawn(4, 8)},
        [nn.Linear, nn.BatchNorm1d, nn.ReLU],
    ),
    "lstm": Architecture(Tagger, lambda: {"x": drawn(2, 6, 8)}, [nn.LSTM, nn.Linear]),
    "transformer": Architecture(
        EncoderDecoder,
        lambda: {"src": drawn(2, 6, 16), "tgt": drawn(2, 5, 16)},
        [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer],
    ),
    "unet": Architecture(UNet, lambda: {"x": drawn(2, 1, 8, 8)}, [nn.Conv2d, nn.BatchNorm2d]),
}
