"""A seed's life in an architecture: grown, learning, a fossil, unwrapped; each as a list of what is wrong with it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.flow.architectures import Architecture
from bench.flow.observed import MODES, TOLERANCE, differences, outputs_of, seen, some_sites, wrapped
from bench.flow.splice import draw, insert_seed, is_close
from esper.errors import WrapRefused
from esper.host.forward import PREFIX
from esper.host.graft import Graft
from esper.kasmina.handle import ModelHandle
from esper.kasmina.lifecycle import SeedId, State
from esper.kasmina.wrap import unwrap

RAMP_STEPS = 3
STEPS = 6  # of training, the ramp among them
MIXES_POSITIONS = "single_head_attention"


@dataclass(slots=True)
class Grown:
    """A wrapped model with one seed inserted at alpha 0."""

    handle: ModelHandle
    optimizer: Optimizer
    seed: SeedId
    graft: Graft
    inputs: Mapping[str, Any]

    @classmethod
    def at(cls, architecture: Architecture, site: str, title: str) -> "Grown":
        handle = wrapped(architecture)
        optimizer = handle.optimizer = torch.optim.Adam(handle.model.parameters(), lr=1e-2)
        graft = insert_seed(handle, site, title, optimizer, RAMP_STEPS)
        return cls(handle, optimizer, SeedId(site, 0), graft, architecture.inputs())

    @property
    def state(self) -> State:
        return self.handle.executor.table[self.seed].state

    def train(self, step: int) -> float:
        """One update towards fixed values, then the ramp. Returns the loss."""
        self.handle.model.train()
        torch.manual_seed(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = distance(outputs_of(self.handle.model, self.inputs))
        loss.backward()
        self.optimizer.step()
        self.handle.executor.step_ramps(step)
        return float(loss.detach())

    def fossilise(self) -> None:
        """Through the verdicts, as a controller would."""
        executor = self.handle.executor
        for target in (State.EVALUATING, State.FINE_TUNING):
            executor.advance(self.seed, target, STEPS, "to be compared")
        executor.fossilise(self.seed, self.optimizer, STEPS, "to be compared")

    def outputs(self) -> list[Tensor]:
        """In eval mode without grad."""
        with torch.no_grad():
            return outputs_of(self.handle.model.eval(), self.inputs)


def distance(outputs: list[Tensor]) -> Tensor:
    """Mean square distance from values that no normalisation reaches by itself."""
    ends = [leaf for leaf in outputs if leaf.requires_grad]
    aims = [torch.linspace(-1, 1, leaf.numel()).reshape(leaf.shape) for leaf in ends]
    return torch.stack([(leaf - aim).square().mean() for leaf, aim in zip(ends, aims, strict=True)]).sum()


def at_some_sites(check: Callable[[Architecture, str], list[str]], architecture: Architecture) -> list[str]:
    """What `check` finds wrong at a few sites, each with its site's name."""
    try:
        sites = some_sites(wrapped(architecture))
    except WrapRefused as error:
        return [f"refused: {error}"]
    return [f"{site}: {wrong}" for site in sites for wrong in check(architecture, site)]


def growth_differences(architecture: Architecture, site: str) -> list[str]:
    """Of a seed inserted at `site`, led to alpha 1 and trained with the host."""
    grown = Grown.at(architecture, site, "bottleneck_mlp")
    plain = architecture.model()
    wrong = [
        f"at alpha 0, {mode}: {what}"
        for mode in MODES
        for what in differences(*(seen(model, grown.inputs, mode) for model in (plain, grown.handle.model)))
    ]
    first = {name: p.detach().clone() for name, p in grown.graft.named_parameters()}
    losses, with_gradient = [], set()
    for step in range(1, STEPS + 1):
        losses.append(grown.train(step))
        with_gradient |= {n for n, p in grown.graft.named_parameters() if p.grad is not None and bool(p.grad.any())}
    wrong += [f"no gradient reaches {name}" for name in first.keys() - with_gradient]
    moved = {name for name, p in grown.graft.named_parameters() if not torch.equal(p, first[name])}
    wrong += [f"{name} has not moved" for name in first.keys() - moved]
    if not torch.isfinite(torch.tensor(losses)).all():
        wrong.append(f"losses {losses}")
    if grown.state is not State.STABILIZATION or float(grown.graft.alpha) != 1.0:
        wrong.append(f"after the ramp it is {grown.state.name} at alpha {float(grown.graft.alpha):g}")
    return wrong + ([grown.graft.fault] if grown.graft.fault else [])


def fossil_differences(architecture: Architecture, site: str) -> list[str]:
    """Of fossils at `site`: one that may be folded, one that is kept."""
    return [
        f"{title}: {wrong}" for title in ("low_rank", "bottleneck_mlp") for wrong in _fossil(architecture, site, title)
    ]


def _fossil(architecture: Architecture, site: str, title: str) -> list[str]:
    grown = Grown.at(architecture, site, title)
    draw(grown.graft, seed=7)
    for step in range(1, STEPS + 1):
        grown.train(step)
    before = grown.outputs()
    with grown.handle.without_seeds():
        host = grown.outputs()
    grown.fossilise()
    record, model = grown.handle.executor.table[grown.seed], grown.handle.model
    after = grown.outputs()
    wrong = ["it does nothing"] if _close(host, before, 10 * TOLERANCE) else []
    wrong += [] if _close(before, after, TOLERANCE) else ["the output changed"]
    if record.folded != _folds(grown, title):
        wrong.append(f"folded is {record.folded}: {record.reason}")
    left = {key for key in model.state_dict() if f".{PREFIX}" in key}
    if bool(left) is record.folded:
        wrong.append(f"branches in the state: {sorted(left)}")
    held = {id(p) for group in grown.optimizer.param_groups for p in group["params"]}
    if held != {id(p) for p in model.parameters()}:
        wrong.append("the optimiser does not hold what the model has")
    learns = model.get_submodule(site) if record.folded else grown.graft
    first = [p.detach().clone() for p in learns.parameters()]
    loss = grown.train(STEPS + 1)
    if all(torch.equal(a, b) for a, b in zip(first, learns.parameters(), strict=True)):
        wrong.append("what it became does not learn")
    return wrong + ([] if loss == loss else ["the loss after it is not a number"])


def _folds(grown: Grown, title: str) -> bool:
    """Whether algebra allows it: a low-rank branch on a dense layer of its own weights, without groups."""
    model, module = grown.handle.model, grown.handle.model.get_submodule(grown.seed.site)
    dense = title == "low_rank" and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
    if not dense or "weight" not in module._parameters or getattr(module, "groups", 1) > 1:
        return False
    owners = [other for other in model.modules() if any(p is module.weight for p in other._parameters.values())]
    return len(owners) == 1


def unwrap_differences(architecture: Architecture) -> list[str]:
    """Of models unwrapped: never grown, with a seed on trial, with a fossil kept as a branch."""
    try:
        site = some_sites(wrapped(architecture))[-1]
    except WrapRefused as error:
        return [f"refused: {error}"]
    handle, plain = wrapped(architecture), architecture.model()
    wrong = [f"never grown: {what}" for what in _unwrapped(handle, plain, architecture.inputs())]
    trial, plain = Grown.at(architecture, site, "bottleneck_mlp"), architecture.model()
    draw(trial.graft, seed=7)
    trial.handle.executor.step_ramps(RAMP_STEPS)
    wrong += [f"{site}, on trial: {what}" for what in _unwrapped(trial.handle, plain, trial.inputs)]
    held = {id(p) for group in trial.optimizer.param_groups for p in group["params"]}
    wrong += [] if held == {id(p) for p in trial.handle.model.parameters()} else ["the optimiser holds what is gone"]
    return wrong + [f"{site}, fossil: {what}" for what in _unwrapped_fossil(architecture, site)]


def _unwrapped(handle: ModelHandle, plain: nn.Module, inputs: Mapping[str, Any]) -> list[str]:
    """By what one could tell an unwrapped model from the plain one."""
    model = unwrap(handle)
    wrong = [] if model is handle.model else ["another object"]
    wrong += [] if list(model.state_dict()) == list(plain.state_dict()) else ["state_dict keys"]
    wrong += [what for mode in MODES for what in differences(*(seen(m, inputs, mode) for m in (plain, model)))]
    for (name, ours), theirs in zip(model.named_modules(), plain.modules(), strict=True):
        wrong += [f"{name} has {left}" for left in vars(ours).keys() ^ vars(theirs).keys()]
    return wrong


def _unwrapped_fossil(architecture: Architecture, site: str) -> list[str]:
    grown = Grown.at(architecture, site, "bottleneck_mlp")
    draw(grown.graft, seed=7)
    grown.handle.executor.step_ramps(RAMP_STEPS)
    grown.fossilise()
    before, keys = grown.outputs(), list(grown.handle.model.state_dict())
    model = unwrap(grown.handle)
    wrong = [] if all(map(torch.equal, before, grown.outputs())) else ["the output changed"]
    wrong += [] if list(model.state_dict()) == keys else ["state_dict keys"]
    with torch.no_grad():
        copied = outputs_of(copy.deepcopy(model), grown.inputs)
    return wrong + ([] if all(map(torch.equal, before, copied)) else ["a copy computes something else"])


def order_differences(architecture: Architecture) -> list[str]:
    """Sites where a seed that mixes positions lets an output see a later input, in a model that does not."""
    try:
        handle = wrapped(architecture)
    except WrapRefused as error:
        return [f"refused: {error}"]
    optimizer = torch.optim.Adam(handle.model.parameters())
    ordered = [site.name for site in handle.executor.sites.values() if site.layout.position_dim is not None]
    wrong = []
    for name in ordered:
        draw(insert_seed(handle, name, MIXES_POSITIONS, optimizer, 1), seed=7)
        handle.executor.step_ramps(1)
        wrong += [f"{name}: {what}" for what in _seen_later(handle.model.eval(), architecture)]
        handle.executor.cull(SeedId(name, 0), optimizer, 1, "compared")
    return wrong


def _seen_later(model: nn.Module, architecture: Architecture) -> list[str]:
    """What is wrong with how a causal model's first output, [B, T, ...], changes with its last input."""
    first = architecture.inputs()
    tokens = first[architecture.causal].clone()
    tokens[:, -1] = torch.where(tokens[:, -1] == 1, 2, 1)
    with torch.no_grad():
        a, b = (outputs_of(model, inputs)[0] for inputs in (first, {**first, architecture.causal: tokens}))
    wrong = [] if is_close(a[:, :-1], b[:, :-1], 1e-5) else ["an earlier output saw the last input"]
    return wrong + (["the last input reaches no output"] if torch.equal(a[:, -1], b[:, -1]) else [])


def _close(a: list[Tensor], b: list[Tensor], tolerance: float) -> bool:
    return len(a) == len(b) and all(is_close(x, y, tolerance) for x, y in zip(a, b, strict=True))
