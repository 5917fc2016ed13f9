"""Somebody else's trainer: a small network on handwritten digits, grown with nothing but Esper's native library.

    python examples/external_trainer/train.py esper/ops/libesper_native.so

Three branches are let into the network while it trains, two by the residual and one by the convex form, their alphas
ramped over the first 40 of 50 steps. At some steps every gradient is compared with that of the plain torch expression;
the script fails where they differ.
"""

import argparse
from collections.abc import Callable

import torch
from shim import blend
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

STEPS, RAMP_STEPS, COMPARED = 50, 40, (0, 10, 30, 49)
SPANS = [(0, 32), (16, 48)]  # the channels of the two residual slots; they overlap


def plain_blend(
    host: Tensor,
    seeds: list[Tensor],
    alphas: Tensor,
    spans: list[tuple[int, int]] | None = None,
    *,
    channel_dim: int,
    convex: bool = False,
) -> Tensor:
    """What the library computes, in plain torch."""
    for slot, seed in enumerate(seeds):
        start, stop = (0, host.shape[channel_dim]) if spans is None else spans[slot]
        under = host.narrow(channel_dim, start, stop - start)
        blended = under + alphas[slot] * (seed - under if convex else seed)
        host = host.slice_scatter(blended, channel_dim, start, stop)
    return host


class Grown(nn.Module):
    """64 pixels, two layers of 48, 10 digits; beside each layer what grows into it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 10)
        self.halves = nn.ModuleList(nn.Sequential(nn.Linear(64, 32), nn.Tanh()) for _ in SPANS)
        self.whole = nn.Sequential(nn.Linear(48, 48), nn.Tanh())
        self.gates = nn.Parameter(torch.ones(3))  # learnt, so that alphas have a gradient
        self.register_buffer("ramp", torch.zeros(1))

    def forward(self, pixels: Tensor, blend: Callable[..., Tensor] = blend) -> Tensor:
        alphas = self.ramp * self.gates
        hidden = self.first(pixels).relu()  # [B, 48]
        hidden = blend(hidden, [half(pixels) for half in self.halves], alphas[:2], SPANS, channel_dim=1)
        hidden = blend(self.second(hidden).relu(), [self.whole(hidden)], alphas[2:], channel_dim=-1, convex=True)
        return self.last(hidden)


def refusal() -> str:
    """What the op says to a trainer without a shim."""
    host = torch.zeros(2, 4, requires_grad=True)
    try:
        torch.ops.esper_native.blend(host, [torch.zeros(2, 4)], torch.ones(1), [0, 4], 1, False)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    raise SystemExit("blend ran in grad mode without a shim: its result has no history")


def compare(model: Grown, pixels: Tensor, digits: Tensor) -> float:
    """Greatest difference of a gradient from the plain expression's. Fails beyond torch's tolerance for float32."""
    ours = torch.autograd.grad(cross_entropy(model(pixels), digits), list(model.parameters()))
    plain = torch.autograd.grad(cross_entropy(model(pixels, plain_blend), digits), list(model.parameters()))
    torch.testing.assert_close(ours, plain)
    return max((a - b).abs().max().item() for a, b in zip(ours, plain, strict=True))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("library", help="path of libesper_native.so")
    torch.ops.load_library(arguments.parse_args().library)
    print("without a shim:", refusal())

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    pixels, digits = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    model = Grown()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(STEPS):
        model.ramp.fill_(min(step / RAMP_STEPS, 1.0))
        rows = torch.randint(len(digits), (128,))
        loss = cross_entropy(model(pixels[rows]), digits[rows])
        optimizer.zero_grad()
        loss.backward()
        if step in COMPARED:
            difference = compare(model, pixels[rows], digits[rows])
            print(f"step {step}: loss {loss:.3f}, ramp {model.ramp.item():.2f}, gradients differ by {difference:.1e}")
        optimizer.step()
    with torch.no_grad():
        right = (model(pixels).argmax(1) == digits).double().mean().item()
    print(f"{STEPS} steps: {right:.1%} of the digits are right")


if __name__ == "__main__":
    main()
