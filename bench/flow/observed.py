"""What one can see of a model from outside, and at which of its sites to look."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bench.flow.architectures import Architecture
from esper.kasmina.handle import ModelHandle
from esper.kasmina.wrap import wrap

MODES = ("train", "eval", "no_grad")
SITES = 3  # tried per architecture, over its depth
TOLERANCE = 1e-4  # of the largest value


def seen(model: nn.Module, inputs: Mapping[str, Any], mode: str) -> dict[str, Tensor]:
    """Outputs and buffers by name, and gradients where the mode has them, from the same state of the generators."""
    torch.manual_seed(3)
    model.train(mode == "train")
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(mode != "no_grad"):
        leaves = outputs_of(model, inputs)
    found = {f"output {i}": leaf.detach() for i, leaf in enumerate(leaves)}
    if mode != "no_grad":
        sum(leaf.square().mean() for leaf in leaves if leaf.requires_grad).backward()  # type: ignore[union-attr]
        grown = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and "esper_" not in n}
        found |= {f"gradient of {n}": gradient.clone() for n, gradient in grown.items()}
    return found | {f"buffer {n}": buffer.clone() for n, buffer in model.named_buffers() if "esper_" not in n}


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of what a model returns."""
    return [leaf for leaf in _pytree.tree_leaves(model(**inputs)) if isinstance(leaf, Tensor)]


def differences(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Names of what only one has, or what is not equal bit for bit."""
    one_sided = list(theirs.keys() ^ ours.keys())
    return one_sided + [k for k in theirs.keys() & ours.keys() if not torch.equal(theirs[k], ours[k])]


def wrapped(architecture: Architecture) -> ModelHandle:
    """A new model of the architecture, wrapped. Raises WrapRefused."""
    return wrap(architecture.model(), architecture.targets, example=architecture.inputs())


def some_sites(handle: ModelHandle) -> list[str]:
    """A few sites over the model's depth."""
    names = list(handle.sites)
    return sorted({names[i * (len(names) - 1) // max(1, SITES - 1)] for i in range(SITES)})
