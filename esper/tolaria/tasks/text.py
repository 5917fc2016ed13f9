"""The next character of Python source: the standard library's own modules, and a small causal transformer.

Modules, not lines, are split into training and held-out parts, so that held-out text is new.
"""

import functools
import hashlib
import math
import sysconfig
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.errors import NotFound
from esper.tolaria.task import Task
from esper.tolaria.tasks.splits import Rows, generator_of

SYMBOLS = 128  # ASCII; anything else is symbol 127
CONTEXT = 64
# share of modules in each part, by a hash of the name
_PARTS = (("train", 0.70), ("select", 0.80), ("judge", 0.90), ("test", 1.0))


class Block(nn.Module):
    """Pre-norm causal attention and MLP (Vaswani et al. 2017; pre-norm as in Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]; position t sees positions <= t."""
        batch, tokens, width = x.shape
        q, k, v = self.mix(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, H, T, C / H]
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        widened: Tensor = F.gelu(self.widen(self.norm2(x)))
        return x + cast(Tensor, self.narrow(widened))


class CharTransformer(nn.Module):
    """Two blocks of width 32, input and output embedding tied: 23,296 parameters."""

    def __init__(self, width: int = 32, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(SYMBOLS, width)
        self.places = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=1 / math.sqrt(width))

    def forward(self, symbols: Tensor) -> Tensor:
        """Symbols [B, T], T <= 64, to scores of the next symbol [B, T, 128]."""
        x = self.tokens(symbols) + self.places[: symbols.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


@functools.cache
def corpus() -> dict[str, Tensor]:
    """Part -> symbols [N], uint8. Raises NotFound where the standard library's source is not installed."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts: dict[str, list[bytes]] = {name: [] for name, _ in _PARTS}
    for path in sorted(folder.glob("*.py")):
        share = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "big") / 2**32
        parts[next(name for name, limit in _PARTS if share < limit)].append(path.read_bytes())
    texts = {name: b"\n".join(files) for name, files in parts.items()}
    short = [name for name, text in texts.items() if len(text) < 100_000]
    if short:
        raise NotFound(f"{folder} has too little Python source for {', '.join(short)}; install the library's source")
    return {name: _symbols(text) for name, text in texts.items()}


def _symbols(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).clamp(max=SYMBOLS - 1)


def windows(text: Tensor, count: int, generator: torch.Generator) -> Rows:
    """`count` windows drawn at random: inputs and targets [count, 64]."""
    starts = torch.randint(len(text) - CONTEXT - 1, (count, 1), generator=generator)
    rows = text[starts + torch.arange(CONTEXT + 1)].long()
    return rows[:, :-1], rows[:, 1:]


def cross_entropy(scores: Tensor, batch: Rows) -> Tensor:
    """Mean cross entropy per symbol of each window, in nats. [B]."""
    return F.cross_entropy(scores.transpose(1, 2), batch[1], reduction="none").mean(1)


def correct(scores: Tensor, batch: Rows) -> Tensor:
    """Share of symbols predicted, per window. [B]."""
    return (scores.argmax(-1) == batch[1]).float().mean(1)


def task(seed: int = 0, steps: int = 4000, batch_size: int = 16) -> Task:
    """256 windows in each held-out slice, the same for every seed."""
    text = corpus()

    def held_out(name: str) -> list[Rows]:
        return [windows(text[name], 256, torch.Generator().manual_seed(0))]

    return Task(
        name="text",
        seed=seed,
        steps=steps,
        make_model=CharTransformer,
        make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=2e-3),
        batch=lambda step: windows(text["train"], batch_size, generator_of(seed, step)),
        held_out=held_out,
        loss=cross_entropy,
        score=correct,
        target_layers=["blocks.?"],
        growth={"halving_step": 120, "keep_candidates": 4},  # a trial must be back in time for the next one
    )
