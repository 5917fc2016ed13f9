"""Which modules of a model may carry seeds.

A site is a module whose output a graft can add to. Targets name sites by module
type, by pattern over qualified names, or by a callable; a module of any class can be
a site if it is named as a whole block.
"""

import fnmatch
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from esper.blueprint.interface import Interface
from esper.errors import WrapRefused
from esper.host.layout import Layout

Target = type[nn.Module] | str | Callable[[str, nn.Module], bool]

# Classes that are sites without being named one by one.
LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.LayerNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.MultiheadAttention,
    nn.Embedding,
)


@dataclass(frozen=True, slots=True)
class Site:
    """A module that was proved to be called, and what it offers a graft."""

    name: str
    module: nn.Module
    layer_kind: str
    layout: Layout
    interface: Interface
    positions: int  # output elements per batch element and channel
    fused_blocks: tuple[str, ...] = ()  # ancestors with a fused path that could pass the site by

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


def select(model: nn.Module, targets: Target | Iterable[Target] | None) -> list[tuple[str, nn.Module]]:
    """The modules that `targets` name, in the model's order. None stands for Linear, Conv1d and Conv2d.

    Raises WrapRefused where nothing matches, listing what could have been named.
    """
    _refuse_replicas(model)
    refuse_sharded(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise WrapRefused("the model is a ScriptModule, whose forwards cannot be swapped; wrap the eager model")
    wanted = _as_list(targets)
    chosen = [(name, m) for name, m in _modules(model) if any(_matches(t, name, m) for t in wanted)]
    if not chosen:
        raise WrapRefused(f"no layer matches {_spell(wanted)}; this model has {_candidates(model)}")
    for name, module in chosen:
        _refuse_unfit(name, module)
    return chosen


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in model.named_modules() if name)


def _as_list(targets: Target | Iterable[Target] | None) -> list[Target]:
    if targets is None:
        return [nn.Linear, nn.Conv1d, nn.Conv2d]
    if isinstance(targets, str | type) or callable(targets):
        return [targets]
    return list(targets)


def _matches(target: Target, name: str, module: nn.Module) -> bool:
    if isinstance(target, str):
        return name == target or fnmatch.fnmatchcase(name, target)
    if isinstance(target, type):
        return isinstance(module, target)
    return bool(target(name, module))


def refuse_sharded(model: nn.Module) -> None:
    """Raise WrapRefused for a model whose parameters are spread over ranks: FSDP's, or a tensor-parallel one."""
    for name, module in model.named_modules():
        bases = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.distributed.fsdp")}
        spread = any(type(p).__name__ == "DTensor" for p in module.parameters(recurse=False))
        if spread or bases & {"FSDPModule", "FullyShardedDataParallel"}:
            raise WrapRefused(
                f"{name or 'the model'} is sharded over ranks (fully_shard, FSDP or tensor parallelism), and a seed "
                "cannot be grafted into shards; train with DistributedDataParallel instead (docs/fsdp2.md)"
            )


def _refuse_replicas(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel):
            raise WrapRefused(
                f"{name or 'the model'} is an nn.DataParallel, which replicates its modules on every forward, so a "
                "seed would be lost at once; wrap the inner module and train with DistributedDataParallel instead"
            )


def _refuse_unfit(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise WrapRefused(f"{name} is a ScriptModule, whose forward cannot be swapped; wrap the eager module")
    if "forward" in vars(module):
        raise WrapRefused(
            f"{name} already has a forward of its own (another library's hook, or it is wrapped already); "
            "undo that, or call esper.unwrap(model), then wrap again"
        )


def _spell(targets: list[Target]) -> str:
    return ", ".join(t if isinstance(t, str) else getattr(t, "__name__", repr(t)) for t in targets) or "no target"


def _candidates(model: nn.Module) -> str:
    found = [f"{name} ({type(m).__name__})" for name, m in _modules(model) if isinstance(m, LAYERS)]
    if not found:
        blocks = [f"{name} ({type(m).__name__})" for name, m in _modules(model)]
        return "no layer of a known class; name a block as a whole: " + (
            ", ".join(blocks[:20]) or "(it has no submodule)"
        )
    return ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")
