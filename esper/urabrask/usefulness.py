"""The usefulness probe: a short graft on a small host of the interface's kind, against its control, held out.

Host: relu(x W1 + b1) W2 at each position, C hidden units, trained first without a graft.
Then both arms train on from there on the same batches, one with h + g(h) for h and g born
at 0. The task is a fixed random network of this and the previous position, so that a graft
that mixes positions and one that widens the host both have something to win. What it says
of another host is little: it is information, and rejects nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.stats.paired import compare
from esper.urabrask.descent import descend
from esper.urabrask.subject import Subject

FEATURES, TEACHER_UNITS = 8, 32
SEEDS, HOST_STEPS, GRAFT_STEPS, RATE = 3, 80, 80, 0.05
BATCH, HELD_OUT = 16, 128
BUDGET_S = 5.0  # no further seed is begun after it
_POSITIONS: dict[int, tuple[int, ...]] = {0: (), 1: (6,), 2: (4, 4)}


@dataclass(frozen=True, slots=True)
class Usefulness:
    """Held-out losses of `pairs` examples with and without the graft. `pairs` 0: the probe did not end, see `detail`.

    `gain`: relative reduction of the loss; above 0 the graft is better.
    """

    pairs: int
    loss: float
    control_loss: float
    gain: float
    gain_standard_error: float
    detail: str


def probe_usefulness(subject: Subject) -> Usefulness:
    """Up to SEEDS hosts, each with its own task; every held-out example is a pair."""
    began, arms, controls = time.monotonic(), list[Tensor](), list[Tensor]()
    for seed in range(SEEDS):
        if seed and time.monotonic() - began > BUDGET_S:
            break
        arm, control = _trial(subject, seed)
        arms.append(arm)
        controls.append(control)
    seen = compare(torch.cat(arms), torch.cat(controls))
    detail = (
        f"held-out loss {seen.mean:.3g}, control {seen.control_mean:.3g}: gain {seen.gain:+.2%} +- "
        f"{seen.gain_standard_error:.2%} over {seen.pairs} examples of {len(arms)} tasks, {GRAFT_STEPS} steps each"
    )
    return Usefulness(seen.pairs, seen.mean, seen.control_mean, seen.gain, seen.gain_standard_error, detail)


def _trial(subject: Subject, seed: int) -> tuple[Tensor, Tensor]:
    """Held-out losses [HELD_OUT] with the graft and without it."""
    generator = torch.Generator().manual_seed(seed)
    draw = _task(subject, generator)
    channels = subject.interface.channels
    host = [
        torch.randn(FEATURES, channels, generator=generator) / FEATURES**0.5,
        torch.zeros(channels),
        torch.randn(channels, 1, generator=generator) / channels**0.5,
    ]
    _train(lambda x: _forward(subject, host, None, x), host, draw, HOST_STEPS)
    batches = [draw(BATCH) for _ in range(GRAFT_STEPS)]
    x, y = draw(HELD_OUT)
    losses = []
    for graft in ([weight.float() for weight in subject.birth], None):
        own = [weight.detach().clone() for weight in host]
        feed = iter(batches)
        _train(
            lambda x, own=own, graft=graft: _forward(subject, own, graft, x),  # type: ignore[misc]
            [*own, *(graft or [])],
            lambda _, feed=feed: next(feed),  # type: ignore[misc]
            GRAFT_STEPS,
        )
        with torch.no_grad():
            losses.append((_forward(subject, own, graft, x) - y).square().flatten(1).mean(1))
    return losses[0], losses[1]


def _task(subject: Subject, generator: torch.Generator) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A function of a batch size: inputs [batch, positions..., FEATURES] and targets [batch, positions..., 1]."""
    positions = _POSITIONS[subject.interface.kind.position_dims]
    here, before = (torch.randn(FEATURES, TEACHER_UNITS, generator=generator) for _ in range(2))
    out = torch.randn(TEACHER_UNITS, 1, generator=generator) / TEACHER_UNITS**0.5

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, *positions, FEATURES, generator=generator)
        y = torch.tanh(x @ here) @ out
        if positions:
            y = y + torch.tanh(x.roll(1, 1) @ before) @ out
        return x, y

    return draw


def _forward(subject: Subject, host: Sequence[Tensor], graft: Sequence[Tensor] | None, x: Tensor) -> Tensor:
    h = torch.relu(x @ host[0] + host[1])
    if graft is not None:
        first, dtype = subject.interface.kind.channels_first, subject.interface.dtype
        site = (h.movedim(-1, 1) if first else h).to(dtype)
        grown = subject.form(site, *[weight.to(dtype) for weight in graft]).to(h.dtype)
        h = h + (grown.movedim(1, -1) if first else grown)
    return h @ host[2]


def _train(
    forward: Callable[[Tensor], Tensor],
    weights: Sequence[Tensor],
    draw: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
) -> None:
    for weight in weights:
        weight.requires_grad_()
    velocity = [torch.zeros_like(weight) for weight in weights]
    for _ in range(steps):
        x, y = draw(BATCH)
        descend((forward(x) - y).square().mean(), weights, velocity, RATE)
