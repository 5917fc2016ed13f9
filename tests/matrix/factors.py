"""What people combine while a seed lives: hosts, grafts, ways to take a step, deeds, optimisers, schedulers, ends."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from esper.host.graft import Strategy
from esper.kasmina.lifecycle import State
from tests import builders

# Hosts


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.first, self.second, self.out = (
            nn.Linear(5, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(torch.tanh(self.into(x))))
        scores: Tensor = self.out(torch.tanh(self.second(h)))
        return scores


class Shared(nn.Module):
    """One layer under two names, called in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.middle, self.out = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.again = self.middle

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.middle(torch.tanh(self.into(x))))
        scores: Tensor = self.out(torch.tanh(self.again(h)))
        return scores


def conv_net(*, norm: bool = False) -> nn.Module:
    """[B, 1, 6, 6] to [B, 3]; smooth, as a unit that dies would stop the learning that rows wait for."""
    norms = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        *norms,
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def frozen() -> nn.Module:
    """A perceptron of which only the last layer learns."""
    model = builders.perceptron()
    model[:4].requires_grad_(False)
    return model


@dataclass(frozen=True)
class Host:
    """A model that anybody could have made, and the layer that a seed is led through its life on."""

    make: Callable[[], nn.Module]
    site: str
    maps: bool = False  # takes images, else rows

    def batch(self, seed: int) -> Tensor:
        return builders.images(seed=seed) if self.maps else builders.rows(seed=seed)


HOSTS = {
    "linear": Host(builders.perceptron, "2"),
    "conv": Host(conv_net, "0", maps=True),
    "before_norm": Host(lambda: conv_net(norm=True), "0", maps=True),
    "norm": Host(lambda: conv_net(norm=True), "1", maps=True),
    "activation": Host(builders.perceptron, "3"),
    "tied": Host(Tied, "first"),
    "shared": Host(Shared, "middle"),
    "frozen": Host(frozen, "2"),
}

# Grafts


@dataclass(frozen=True)
class Branch:
    """What is grown, and how it joins."""

    title: str
    strategy: Strategy = Strategy.RESIDUAL
    span: tuple[int, int] | None = None


BRANCHES = {
    "mlp": Branch("bottleneck_mlp"),
    "low_rank": Branch("low_rank"),
    "scale": Branch("scale"),
    "normalisation": Branch("normalisation"),
    "gated": Branch("bottleneck_mlp", Strategy.GATED),
    "convex": Branch("bottleneck_mlp", Strategy.CONVEX),
    "chunk": Branch("bottleneck_mlp", span=(1, 4)),
}

# Optimisers

_SGD = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01})
_ADAM = (torch.optim.Adam, {"lr": 0.01, "eps": 1e-4})  # the default epsilon is 0 in half precision
_ADAMW = (torch.optim.AdamW, {"lr": 0.01, "eps": 1e-4, "amsgrad": True})
_ADAFACTOR = (torch.optim.Adafactor, {"lr": 0.01})
_KINDS = {"sgd": _SGD, "adam": _ADAM, "adamw": _ADAMW, "adafactor": _ADAFACTOR}
_FORMS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}

OPTIMIZERS = {
    f"{kind}_{form}": (made, options | extra)
    for kind, (made, options) in _KINDS.items()
    for form, extra in _FORMS.items()
    if (kind, form) != ("adafactor", "fused")  # torch has none
}


def make_optimizer(name: str, model: nn.Module) -> Optimizer:
    """Two groups, as people make them: matrices, and vectors at half the learning rate."""
    made, options = OPTIMIZERS[name]
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1]},
        {"params": [p for p in learning if p.ndim <= 1], "lr": options["lr"] / 2},
    ]
    return made(groups, **options)  # type: ignore[no-any-return, operator]


def fresh_optimizer(name: str, group: dict[str, object], parameters: list[Tensor]) -> Optimizer:
    """A new optimiser with one group's settings of now."""
    made, options = OPTIMIZERS[name]
    fresh: Optimizer = made(parameters, **options)  # type: ignore[operator]
    fresh.param_groups[0].update({key: value for key, value in group.items() if key != "params"})
    return fresh


# Schedulers


def _one_cycle(optimizer: Optimizer) -> LRScheduler:
    rates = [2 * group["lr"] for group in optimizer.param_groups]
    cycles = not isinstance(optimizer, torch.optim.Adafactor)  # which has no momentum to cycle
    return lr_scheduler.OneCycleLR(optimizer, rates, total_steps=60, cycle_momentum=cycles)


Scheduler = LRScheduler | lr_scheduler.ReduceLROnPlateau
SCHEDULERS: dict[str, Callable[[Optimizer], Scheduler]] = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=4),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda epoch: 0.95**epoch, lambda epoch: 1 / (1 + epoch)]),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 60),
    "one_cycle": _one_cycle,
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.9, patience=0),
}

# How a step is taken, what is done once, and how it ends: by name in steps.py, deeds.py and life.py

STEPS = (
    *("plain", "autocast_bfloat16", "autocast_float16_scaler", "accumulation", "checkpoint", "checkpoint_reentrant"),
    *("compile", "clip", "grads_kept"),
)
DTYPES = {"bfloat16": torch.bfloat16, "half": torch.float16, "double": torch.float64}
DEEDS = ("flip_modes", "evaluate", "deepcopy", "average", *DTYPES, "channels_last", "reload")
ENDS = ("cull", "fossilise", "freeze", "remove")

FACTORS: dict[str, tuple[str, ...]] = {
    "state": tuple(state.name for state in State),
    "host": tuple(HOSTS),
    "branch": tuple(BRANCHES),
    "step": STEPS,
    "deed": DEEDS,
    "optimizer": tuple(OPTIMIZERS),
    "scheduler": tuple(SCHEDULERS),
    "end": ENDS,
}
