"""Optimiser surgery: newborn parameters in, dead ones out, every other state untouched.

A newborn joins the group of the site it grew on, so schedulers see nothing new; its
state is what a fresh optimiser would have, because torch's optimisers make state per
parameter at the first step; where one does not, its state is made here. With a learning
rate of its own it gets a new group, and every per-group list of the scheduler is extended.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Muon, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler

from esper.errors import InvalidRequest

# Per-group lists of torch's schedulers; a new group appends a copy of its neighbour's entry.
_PER_GROUP_LISTS = (
    *("base_lrs", "_last_lr", "lr_lambdas", "min_lrs"),
    *("max_lrs", "base_momentums", "max_momentums"),  # CyclicLR
)

# Optimisers that newborns do not fit, and why.
_UNFIT: dict[type[Optimizer], str] = {
    LBFGS: "keeps one history for all its parameters together",
    Muon: "takes matrices only, and a branch has vectors as well",
    SparseAdam: "takes sparse gradients only",
}


def home_group(optimizer: Optimizer, host: nn.Module, site: nn.Module) -> int:
    """Index of the group that newborns of `site` join.

    That of the site's own parameters; for a site without any, the group with most of
    the host's parameters. Raises InvalidRequest where the optimiser holds none of them, or
    is one that newborns do not fit.
    """
    refuse_unfit(optimizer)
    for owner in (site, host):
        ids = {id(p) for p in owner.parameters()}
        held = [sum(id(p) in ids for p in group["params"]) for group in optimizer.param_groups]
        if any(held):
            return held.index(max(held))
    raise InvalidRequest(
        "the optimiser holds none of the model's parameters, so a seed could not be trained; "
        "build it from model.parameters() of the wrapped model"
    )


def refuse_unfit(optimizer: Optimizer) -> None:
    """Raise InvalidRequest for an optimiser that could not train newborns beside what it holds."""
    for unfit, why in _UNFIT.items():
        if isinstance(optimizer, unfit):
            raise InvalidRequest(
                f"{type(optimizer).__name__} {why}, so a seed could not be trained; grow with another optimiser, "
                "such as the one that holds the model's biases"
            )
    if any(_has_fused_momentum(optimizer, group) and group["dampening"] for group in optimizer.param_groups):
        raise InvalidRequest(
            "a fused SGD with dampening damps a newborn's first step, which torch's other forms do not; "
            "build the optimiser with fused=False, or without dampening"
        )


def add_newborns(
    optimizer: Optimizer,
    newborns: Iterable[nn.Parameter],
    group_index: int,
    *,
    learning_rate: float | None = None,
    scheduler: LRScheduler | None = None,
) -> None:
    """Let the optimiser train `newborns`. A learning rate of their own makes a new group."""
    newborns = list(newborns)
    group = optimizer.param_groups[group_index]
    if learning_rate is None:
        _start_state(optimizer, newborns, group)
        group["params"].extend(newborns)
        if "param_names" in group:
            group["param_names"].extend(_names(optimizer, newborns))
        return
    settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    settings |= {"lr": learning_rate, "initial_lr": learning_rate}
    named = list(zip(_names(optimizer, newborns), newborns, strict=True)) if "param_names" in group else newborns
    optimizer.add_param_group({"params": named, **settings})
    _start_state(optimizer, newborns, optimizer.param_groups[-1])
    if scheduler is not None:
        _extend(scheduler, group_index, learning_rate)


def remove_parameters(optimizer: Optimizer, dead: Iterable[nn.Parameter]) -> None:
    """Take `dead` out of groups and state. A group left empty stays, for the scheduler's lists."""
    ids = {id(p) for p in dead}
    for group in optimizer.param_groups:
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in ids]
        for key in ("params", "param_names"):
            if key in group:
                group[key][:] = [group[key][i] for i in kept]
    for parameter in [p for p in optimizer.state if id(p) in ids]:
        del optimizer.state[parameter]


def sibling(optimizer: Optimizer, parameters: Sequence[nn.Parameter], group_index: int) -> Optimizer:
    """A fresh optimiser of the same class with one group's settings, for parameters outside the host."""
    made: Any = type(optimizer)
    fresh: Optimizer = made(parameters, lr=optimizer.param_groups[group_index]["lr"])
    follow(fresh, optimizer, group_index)
    _start_state(fresh, parameters, fresh.param_groups[0])
    return fresh


def follow(fresh: Optimizer, optimizer: Optimizer, group_index: int) -> None:
    """Set a sibling's learning rate, and whatever else a scheduler moves, to its group's of now."""
    group = optimizer.param_groups[group_index]
    fresh.param_groups[0].update({k: v for k, v in group.items() if k not in ("params", "param_names")})


def _start_state(optimizer: Optimizer, newborns: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
    """Make the state that torch does not make at a parameter's first step."""
    if newborns and isinstance(optimizer, Adagrad):  # makes it when it is built
        made: Any = type(optimizer)
        optimizer.state.update(made(newborns, **{name: group[name] for name in optimizer.defaults}).state)
    if _has_fused_momentum(optimizer, group) and _has_stepped(optimizer, group):
        # torch takes momenta for all of a group or for none; after a momentum of 0 the first is the gradient itself
        for newborn in newborns:
            optimizer.state[newborn]["momentum_buffer"] = torch.zeros_like(newborn)


def _has_stepped(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return any("momentum_buffer" in optimizer.state.get(p, ()) for p in group["params"])


def _has_fused_momentum(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return isinstance(optimizer, SGD) and bool(group["fused"]) and group["momentum"] != 0


def _names(optimizer: Optimizer, newborns: Sequence[nn.Parameter]) -> list[str]:
    """Names for an optimiser that was built from named parameters, none of them taken."""
    taken = {name for group in optimizer.param_groups for name in group.get("param_names", ())}
    free = (name for i in itertools.count() if (name := f"esper.{i}") not in taken)
    return list(itertools.islice(free, len(newborns)))


def _extend(scheduler: LRScheduler, group_index: int, learning_rate: float) -> None:
    """Append an entry for the new group to every per-group list, each list once."""
    lists: dict[int, tuple[str, list[Any]]] = {}
    for each in (scheduler, *getattr(scheduler, "_schedulers", ())):  # SequentialLR, ChainedScheduler hold others
        for name in _PER_GROUP_LISTS:
            entries = getattr(each, name, None)
            if isinstance(entries, list) and len(entries) > group_index:
                lists[id(entries)] = name, entries
    for name, entries in lists.values():
        entries.append(learning_rate if name in ("base_lrs", "_last_lr") else entries[group_index])
