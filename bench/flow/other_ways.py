"""Other ways to make a layer able to carry a seed, each of them idle: what `dormant` compares Esper's way with.

All leave the model's outputs as they are, but for rounding where torch takes another path of its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.flow.hosts import Host

RANK = 8  # PEFT's default for LoRA


class Wrapper(nn.Module):
    """The layer as a child, behind a test of whether there is a seed."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.seed: nn.Module | None = None
        if isinstance(layer, nn.TransformerEncoderLayer):
            self.self_attn = layer.self_attn  # nn.TransformerEncoder reads it

    def forward(self, *inputs: Tensor, **options: object) -> Tensor:
        out: Tensor = self.layer(*inputs, **options)
        return out if self.seed is None else out + self.seed(out)


class AlwaysBlend(Wrapper):
    """A blend at alpha 0 in every call, with the cheapest seed there is: the output itself."""

    alpha: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.register_buffer("alpha", torch.zeros(1))

    def forward(self, *inputs: Tensor, **options: object) -> Tensor:
        out: Tensor = self.layer(*inputs, **options)
        return torch.lerp(out, out, self.alpha)


class LowRank(Wrapper):
    """As PEFT's LoRA layers are: the layer inside, beside it a branch that is scaled, here by 0. All of it trains."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.down, self.up = low_rank(layer)
        self.scaling = 0.0

    def forward(self, x: Tensor, **options: object) -> Tensor:
        out: Tensor = self.layer(x, **options)
        return out + self.up(self.down(x)) * self.scaling


def low_rank(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Into RANK channels and out of them, from the layer's input to the shape of its output."""
    if isinstance(layer, nn.Conv2d):
        size, stride, padding = layer.kernel_size, layer.stride, layer.padding
        down = nn.Conv2d(layer.in_channels, RANK, size, stride, padding, bias=False)  # type: ignore[arg-type]
        return down, nn.Conv2d(RANK, layer.out_channels, 1, bias=False)
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, RANK, bias=False), nn.Linear(RANK, layer.out_features, bias=False)
    if isinstance(layer, nn.TransformerEncoderLayer):
        width = layer.linear1.in_features
        return nn.Linear(width, RANK, bias=False), nn.Linear(RANK, width, bias=False)
    known = "Linear, Conv2d, TransformerEncoderLayer"
    raise TypeError(f"no low-rank branch is written for {type(layer).__name__}; there is one for {known}")


def hook(layer: nn.Module) -> nn.Module:
    """The layer with a forward hook that asks whether there is a seed."""
    seeds: dict[nn.Module, nn.Module] = {}

    def add(module: nn.Module, _: object, out: Tensor) -> Tensor | None:
        seed = seeds.get(module)
        return None if seed is None else out + seed(out)

    layer.register_forward_hook(add)
    return layer


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "wrapper": Wrapper,
    "hook": hook,
    "always-blend": AlwaysBlend,
    "PEFT-style": LowRank,
}


def model_of(way: str, host: Host) -> nn.Module:
    """The host's model with every layer of its targets carried in that way, and shown to compute the same."""
    model = host.model()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, host.targets):
            model.set_submodule(name, WAYS[way](layer))
    batch = host.batch()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(batch), host.model().eval()(batch))
    return model
