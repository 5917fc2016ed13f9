"""A model whose weights and arithmetic are bfloat16, behind the arguments and outputs of the float32 one."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from esper.errors import PreconditionFailed
from esper.host.trace import plain_output


def in_bf16(model: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    """A copy of `model` in eval mode with bfloat16 weights and buffers.

    It takes what `model` takes: floating arguments are cast on the way in, floating outputs to the dtype
    that `model` gives on the way out. Raises PreconditionFailed for a forward that does not run in bfloat16.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        outputs = [_floating(leaf) for leaf in _pytree.tree_leaves(plain_output(model(*example)))]
    inputs = [torch.bfloat16 if _floating(leaf) else None for leaf in _pytree.tree_leaves((example, {}))]
    half = model.to(torch.bfloat16)
    own = vars(half).pop("forward", None) or functools.partial(type(half).forward, half)

    @functools.wraps(type(half).forward)  # what reads its signature or its globals finds the model's own
    def forward(_self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _cast((args, kwargs), inputs)
        return _cast(plain_output(own(*args, **kwargs)), outputs)

    half.__class__ = type(type(half).__name__, (type(half),), {"forward": forward})
    _try(half, example)
    return half


def _try(half: nn.Module, example: tuple[Any, ...]) -> None:
    call: Callable[..., Any] = half
    try:
        with torch.no_grad():
            call(*example)
    except Exception as error:  # user code, which may hold to float32
        raise PreconditionFailed(
            f"bf16: the forward of {type(half).__name__} does not run in bfloat16 ({type(error).__name__}: {error}); "
            "let it take its dtypes from its weights, or ask for another form"
        ) from error


def _floating(leaf: Any) -> torch.dtype | None:
    return leaf.dtype if isinstance(leaf, Tensor) and leaf.is_floating_point() else None


def _cast(tree: Any, dtypes: list[torch.dtype | None]) -> Any:
    """Leaves in order, each to its dtype where it has one."""
    leaves, spec = _pytree.tree_flatten(tree)
    cast = [leaf if dtype is None else leaf.to(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
    return _pytree.tree_unflatten(cast, spec)
