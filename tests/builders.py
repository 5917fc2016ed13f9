"""One valid example of each thing, by function; a test overrides by keyword what it is about."""

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import INPUT, Graph, Node
from esper.blueprint.lower import Lowered, lower
from esper.host.graft import Graft, Strategy
from esper.host.layout import Layout
from esper.host.proof import prove
from esper.host.sites import Site, select
from esper.karn.templates import TEMPLATES
from esper.kasmina.executor import Assignment, Executor
from esper.kasmina.handle import ModelHandle
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import IN_HOST, SeedId, State
from esper.kasmina.table import SeedTable
from esper.kasmina.wrap import wrap
from esper.stats.paired import Paired
from esper.tolaria.task import Task

ARTIFACT = "a" * 64


# Hosts


def perceptron(*, width: int = 6, inputs: int = 5, outputs: int = 3) -> nn.Sequential:
    """[B, 5] to [B, 3]; sites "0", "2" and "4"."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )


def conv_net(*, norm: bool = False, width: int = 4) -> nn.Sequential:
    """[B, 1, 6, 6] to [B, 3]; convolutions "0" and "3", or "0" and "4" with a norm between."""
    norms = [nn.BatchNorm2d(width)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        *norms,
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 9, 3),
    )


class Reader(nn.Module):
    """A small language model: ids [B, T] to scores [B, T, 11]; causal or not."""

    def __init__(self, *, causal: bool = True, width: int = 8, batch_first: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.causal, self.batch_first = causal, batch_first
        self.embed = nn.Embedding(11, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=batch_first, dropout=dropout)
        self.fc1 = nn.Linear(width, 2 * width)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 11)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        length = ids.shape[1 if self.batch_first else 0]
        mask = torch.ones(length, length).triu(1).bool() if self.causal else None
        n = self.norm(h)
        h = h + self.attention(n, n, n, attn_mask=mask, need_weights=False)[0]
        h = h + self.fc2(self.drop(F.gelu(self.fc1(h))))
        scores: Tensor = self.head(h)
        return scores


def images(count: int = 4, *, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def rows(count: int = 4, width: int = 5, *, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def ids(count: int = 3, length: int = 7, *, seed: int = 0) -> Tensor:
    return torch.randint(11, (count, length), generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module with first weights of its own, whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def stir(module: nn.Module, *, seed: int = 1, scale: float = 0.3) -> nn.Module:
    """Give every parameter a value that no accident makes zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * scale + scale * drawn.sign() * 0.1)
    return module


# Blueprints, kernels, grafts


def interface(kind: Kind = Kind.VECTOR, channels: int = 6, **changes: object) -> Interface:
    return Interface(kind, channels, **changes)  # type: ignore[arg-type]


def affine_graph() -> Graph:
    """g(h) = W h + b."""
    from esper.blueprint.ir import CHANNELS, Initialiser, Parameter

    return Graph(
        nodes=(Node("map", "linear", (INPUT,), ("weight", "bias"), (("out", CHANNELS),)),),
        parameters=(
            Parameter("weight", (CHANNELS, CHANNELS), Initialiser.ZEROS),
            Parameter("bias", (CHANNELS,), Initialiser.ZEROS),
        ),
        output="map",
    )


def scale_graph() -> Graph:
    """g(h) = w h, per channel."""
    from esper.blueprint.ir import CHANNELS, Initialiser, Parameter

    return Graph(
        nodes=(Node("scaled", "scale", (INPUT,), ("weight",)),),
        parameters=(Parameter("weight", (CHANNELS,), Initialiser.ZEROS),),
        output="scaled",
    )


def fixed_graph() -> Graph:
    """g(h) = tanh(h), which has nothing to learn."""
    return Graph(nodes=(Node("bent", "tanh", (INPUT,)),), parameters=(), output="bent")


def graph(title: str = "bottleneck_mlp") -> Graph:
    own = {"affine": affine_graph, "scale": scale_graph, "fixed": fixed_graph}
    return own[title]() if title in own else TEMPLATES[title].graph


def kernel(at: Interface | None = None, *, title: str = "bottleneck_mlp", artifact_id: str = ARTIFACT) -> Kernel:
    made = graph(title)
    return Kernel(artifact_id, blueprint_id(made), made, at or interface())


def body(at: Interface | None = None, *, title: str = "bottleneck_mlp", seed: int = 1) -> Lowered:
    made = lower(graph(title), at or interface())
    stir(made, seed=seed)
    return made


def graft(
    at: Interface | None = None,
    *,
    title: str = "bottleneck_mlp",
    alpha: float = 1.0,
    seed: int = 1,
    strategy: Strategy = Strategy.RESIDUAL,
    span: tuple[int, int] | None = None,
    layout: Layout | None = None,
) -> Graft:
    """A graft that is not attached, its weights stirred."""
    at = at or interface()
    inner = body(at, title=title, seed=seed)
    made = Graft(inner, layout or Layout(at.kind), torch.tensor(alpha), span=span, strategy=strategy)
    stir(made, seed=seed)
    return made


# Wrapped models


def sites(model: nn.Module, targets: object, example: Tensor, **options: object) -> dict[str, Site]:
    proved = prove(model, select(model, targets), lambda m: m(example), **options)  # type: ignore[arg-type]
    return {site.name: site for site in proved}


def handle(
    model: nn.Module | None = None, targets: object = "2", example: object = None, **options: object
) -> ModelHandle:
    """A wrapped model with two seeds per site."""
    model = model if model is not None else seeded(perceptron)
    example = rows() if example is None else example
    made = wrap(model, targets, options.pop("seeds_per_layer", 2), example=example, **options)  # type: ignore[arg-type]
    made.optimizer = adam(model)
    return made


def executor(
    model: nn.Module | None = None, targets: object = "2", example: Tensor | None = None, **options: object
) -> Executor:
    model = model if model is not None else seeded(perceptron)
    found = sites(model, targets, rows() if example is None else example)
    table = SeedTable.make(((name, 2) for name in found), torch.device("cpu"))
    return Executor(model, found, table, **options)  # type: ignore[arg-type]


def adam(model: nn.Module, **options: float) -> Optimizer:
    return torch.optim.Adam(model.parameters(), **({"lr": 1e-2} | options))  # type: ignore[arg-type]


def first_seed(owner: Executor, slot: int = 0) -> SeedId:
    return SeedId(next(iter(owner.sites)), slot)


def assignment(seed: SeedId, **changes: object) -> Assignment:
    return Assignment(seed, **({"artifact_id": ARTIFACT, "title": "bottleneck_mlp", "family": "mlp"} | changes))  # type: ignore[arg-type]


def kernel_for(owner: Executor, seed: SeedId, *, title: str = "bottleneck_mlp", artifact_id: str = ARTIFACT) -> Kernel:
    """The kernel that fits a seed's site and span."""
    from dataclasses import replace

    span = owner.table[seed].span
    at = owner.sites[seed.site].interface
    return kernel(at if span is None else replace(at, channels=span[1] - span[0]), title=title, artifact_id=artifact_id)


def lead(
    owner: Executor,
    state: State,
    optimizer: Optimizer | None = None,
    *,
    seed: SeedId | None = None,
    title: str = "bottleneck_mlp",
    artifact_id: str = ARTIFACT,
    step: int = 10,
    stirred: bool = True,
    strategy: Strategy = Strategy.RESIDUAL,
    span: tuple[int, int] | None = None,
) -> SeedId:
    """Bring a DORMANT seed to `state` by the shortest way. Its weights are stirred unless it is to be newborn."""
    seed = seed or first_seed(owner)
    optimizer = optimizer or adam(owner.model)
    if state is State.DORMANT:
        return seed
    if state is State.GERMINATED:
        owner.table.move(owner.table[seed], State.GERMINATED, step, "led")
        return seed
    owner.germinate([assignment(seed, artifact_id=artifact_id, strategy=strategy, span=span)], "event", step, "led")
    if state is State.LOADING:
        return seed
    owner.loaded(seed, kernel_for(owner, seed, title=title, artifact_id=artifact_id), step)
    end = {State.CULLED: owner.load_failed, State.CANCELLED: owner.cancel, State.ROLLED_BACK: owner.lock}.get(state)
    if end is not None:
        owner.cull(seed, optimizer, step, "led") if state is State.CULLED else end(seed, step, "led")
    if state in IN_HOST:
        _lead_into_host(owner, state, optimizer, seed, step, stirred)
    return seed


def _lead_into_host(
    owner: Executor, state: State, optimizer: Optimizer, seed: SeedId, step: int, stirred: bool
) -> None:
    made = owner.insert(seed, optimizer, step, 4, "led")
    if stirred:
        stir(made)
    owner.step_ramps(step + 2)
    moves: list[Callable[[], object]] = [
        lambda: owner.step_ramps(step + 4),
        lambda: owner.advance(seed, State.EVALUATING, step, "led"),
        lambda: owner.advance(seed, State.FINE_TUNING, step, "led"),
        lambda: owner.fossilise(seed, optimizer, step, "led"),
    ]
    later = (State.STABILIZATION, State.EVALUATING, State.FINE_TUNING, State.FOSSILIZED)
    for target, move in zip(later, moves, strict=True):
        if state >= target:
            move()


def train(model: nn.Module, optimizer: Optimizer, inputs: Iterable[Tensor]) -> None:
    """A few steps on the sum of squares."""
    model.train()
    for x in inputs:
        optimizer.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        optimizer.step()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in the state dict."""
    return copy.deepcopy(model.state_dict())


# Measurements and tasks


def paired(*, gain: float = 0.05, standard_errors: float = 3.0, control_mean: float = 1.0, pairs: int = 250) -> Paired:
    """A comparison with that relative gain at that distance from 0."""
    difference = gain * abs(control_mean)
    return Paired(pairs, control_mean - difference, control_mean, abs(difference) / standard_errors)


def task(make_model: Callable[[], nn.Module] = perceptron, **changes: object) -> Task:
    """Regression on 5 numbers, with a loss per example."""

    def batch(step: int, count: int = 16) -> tuple[Tensor, Tensor]:
        x = rows(count, seed=1000 + step)
        return x, torch.sin(2 * x[:, :3]) + x[:, 2:].abs()

    slices = {"select": 1, "judge": 2, "test": 3}
    settings: dict[str, object] = {
        "name": "regression",
        "make_model": make_model,
        "make_optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
        "batch": batch,
        "held_out": lambda name: [batch(-10 * slices[name], 20), batch(-10 * slices[name] - 1, 12)],
        "loss": lambda outputs, batch: (outputs - batch[1]).square().mean(1),
    }
    return Task(**(settings | changes))  # type: ignore[arg-type]
