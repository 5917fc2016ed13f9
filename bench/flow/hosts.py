"""Ordinary models of a size at which a step is arithmetic and not only overhead, and an input for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Host:
    """A model to carry seeds. `seed`: of its first weights, so that two of them are equal."""

    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    targets: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()

    def batch(self) -> Tensor:
        return torch.randn(self.input_shape, generator=torch.Generator().manual_seed(1))


class Encoder(nn.Module):
    """Two encoder layers over 32 positions and a head per position."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(x))
        return scores


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 256))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


HOSTS = {
    "Linear": Host(linear, (64, 256)),
    "MLP": Host(perceptron, (64, 128)),
    "CNN": Host(convolutions, (16, 3, 16, 16)),
    # the encoder layer as a whole: its own Linear layers are passed by on the fused path
    "transformer": Host(Encoder, (8, 32, 128), (nn.TransformerEncoderLayer,)),
}
