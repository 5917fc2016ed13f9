"""A host for every layer kind that may carry seeds: (make model, example, site, where channels are)."""

import torch
from torch import nn

from tests import builders


class Attends(nn.Module):
    """Self-attention with a residual; returns the sum and uses the weights, so that both outputs are read."""

    def __init__(self, batch_first):
        super().__init__()
        self.into, self.mha, self.out = (
            nn.Linear(5, 6),
            nn.MultiheadAttention(6, 2, batch_first=batch_first),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        h = self.into(x)
        joined, weights = self.mha(h, h, h)
        return self.out(h + joined) + weights.mean()


class Block(nn.Module):
    """A block of its own that returns a tuple."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return torch.relu(self.fc(x)) + x, x.mean()


class Unpacks(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.block, self.out = nn.Linear(5, 6), Block(), nn.Linear(6, 3)

    def forward(self, x):
        h, mean = self.block(self.into(x))
        return self.out(h) + mean


class Embeds(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.out(self.embed(ids))


def around(layer, *, into=5, channels=6):
    """[B, 5] or [B, T, 5] through Linear, the layer, Linear; the site is "1"."""
    return lambda: nn.Sequential(nn.Linear(into, channels), layer(), nn.Linear(channels, 3))


def between_convs(layer):
    return lambda: nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), layer(), nn.Conv2d(6, 2, 3))


def between_conv1ds(layer):
    return lambda: nn.Sequential(nn.Conv1d(5, 6, 3, padding=1), layer(), nn.Conv1d(6, 2, 3))


def encoder_layer(batch_first=True):
    return nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=batch_first)


_TOKENS, _MAP1D, _MAP2D, _VECTOR = (3, 7, 5), (3, 5, 8), (3, 1, 6, 6), (4, 5)
_LAST, _FIRST = -1, 1

_TABLE = {
    "linear_vector": (around(lambda: nn.Linear(6, 6)), _VECTOR, "1", _LAST),
    "linear_tokens": (around(lambda: nn.Linear(6, 6)), _TOKENS, "1", _LAST),
    "conv1d": (between_conv1ds(lambda: nn.Conv1d(6, 6, 3, padding=1)), _MAP1D, "1", _FIRST),
    "conv2d": (between_convs(lambda: nn.Conv2d(6, 6, 3, padding=1)), _MAP2D, "1", _FIRST),
    "relu": (around(nn.ReLU), _VECTOR, "1", _LAST),
    "relu_inplace": (between_convs(lambda: nn.ReLU(inplace=True)), _MAP2D, "1", _FIRST),
    "before_inplace_relu": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 1)),
        _MAP2D,
        "0",
        _FIRST,
    ),
    "relu_map1d": (between_conv1ds(nn.ReLU), _MAP1D, "1", _FIRST),
    "gelu": (around(nn.GELU), _TOKENS, "1", _LAST),
    "silu": (around(nn.SiLU), _VECTOR, "1", _LAST),
    "tanh": (around(nn.Tanh), _VECTOR, "1", _LAST),
    "sigmoid": (between_convs(nn.Sigmoid), _MAP2D, "1", _FIRST),
    "layer_norm": (around(lambda: nn.LayerNorm(6)), _TOKENS, "1", _LAST),
    "batch_norm_vector": (around(lambda: nn.BatchNorm1d(6)), _VECTOR, "1", _LAST),
    "batch_norm_map1d": (between_conv1ds(lambda: nn.BatchNorm1d(6)), _MAP1D, "1", _FIRST),
    "batch_norm_map2d": (between_convs(lambda: nn.BatchNorm2d(6)), _MAP2D, "1", _FIRST),
    "group_norm": (between_convs(lambda: nn.GroupNorm(3, 6)), _MAP2D, "1", _FIRST),
    "attention": (lambda: Attends(True), _TOKENS, "mha", _LAST),
    "attention_sequence_first": (lambda: Attends(False), _TOKENS, "mha", _LAST),
    "embedding": (Embeds, None, "embed", _LAST),
    "block_tuple": (Unpacks, _VECTOR, "block", _LAST),
    "block_sequential": (around(lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh())), _VECTOR, "1", _LAST),
    "block_encoder": (around(encoder_layer), _TOKENS, "1", _LAST),
    "block_encoder_sequence_first": (around(lambda: encoder_layer(False)), _TOKENS, "1", _LAST),
    "lstm": (lambda: Recurrent(), _TOKENS, "rnn", _LAST),
}
KINDS = tuple(_TABLE)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        hidden, (last, _) = self.rnn(x)
        return self.out(hidden) + last.mean()


def host(kind):
    """(model, example, site name, channel dimension)."""
    make, shape, site, channel_dim = _TABLE[kind]
    generator = torch.Generator().manual_seed(4)
    example = builders.ids(3, 7) if shape is None else torch.randn(shape, generator=generator)
    return builders.seeded(make), example, site, channel_dim
