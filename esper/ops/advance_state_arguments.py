"""What advance_state accepts. Each refusal names the argument, the value, the limit and the remedy."""

from typing import NoReturn

import torch
from torch import Tensor

from esper.errors import InvalidRequest, ShapeMismatch
from esper.ops.gates import check_mask
from esper.ops.layout import extent

NAMES = ("alphas", "ages", "step", "states", "ramp_begins", "ramp_steps")
DTYPES = (torch.float32, torch.int64, torch.int64, torch.uint8, torch.int64, torch.int64)
WRITTEN = 3  # the first of NAMES


def check_state(
    alphas: Tensor,
    ages: Tensor,
    step: Tensor,
    states: Tensor,
    ramp_begins: Tensor,
    ramp_steps: Tensor,
    ramping: int,
    counting: int,
) -> None:
    """Refuse what no implementation can advance. Raises ShapeMismatch and InvalidRequest."""
    check_mask("advance_state", "ramping", ramping)
    check_mask("advance_state", "counting", counting)
    if alphas.ndim != 1:
        refuse(ShapeMismatch, "alphas", f"is {list(alphas.shape)}; it must be [S], one per seed")
    tensors = (alphas, ages, step, states, ramp_begins, ramp_steps)
    for name, tensor, dtype in zip(NAMES, tensors, DTYPES, strict=True):
        wanted = (1,) if name == "step" else alphas.shape
        if tensor.dtype is not dtype:
            refuse(InvalidRequest, name, f"has dtype {tensor.dtype}; it must be {dtype}")
        if tensor.shape != wanted:
            refuse(ShapeMismatch, name, f"is {list(tensor.shape)}; it must be {list(wanted)}")
        if tensor.device != alphas.device:
            refuse(InvalidRequest, name, f"is on {tensor.device}, alphas on {alphas.device}; keep a table together")
        if not tensor.is_contiguous():
            refuse(InvalidRequest, name, f"has stride {tensor.stride(0)}; a table's columns must be contiguous")
    check_no_gradient(alphas)


def check_no_gradient(alphas: Tensor) -> None:
    """Refuse alphas that are learned. Raises InvalidRequest."""
    if alphas.requires_grad:
        refuse(InvalidRequest, "alphas", "requires a gradient; a ramp sets it, so pass alphas.detach()")


def check_apart(*tensors: Tensor) -> None:
    """Refuse a written tensor that shares memory with another. Raises InvalidRequest. Tensors as NAMES."""
    ranges = [extent(tensor) for tensor in tensors]
    for written in range(WRITTEN):
        for other in range(len(ranges)):
            begin, end = max(ranges[written][0], ranges[other][0]), min(ranges[written][1], ranges[other][1])
            if other != written and begin < end:
                refuse(
                    InvalidRequest,
                    NAMES[written],
                    f"shares memory with {NAMES[other]}; what is written needs memory of its own, use .clone()",
                )


def refuse(error: type[InvalidRequest], argument: str, reason: str) -> NoReturn:
    """Raise `error` about `argument`."""
    raise error(f"advance_state: {argument} {reason}", {argument: reason})
