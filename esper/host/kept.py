"""Run a model and leave no trace: generators, buffers and modes come back as they were."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def kept_generators(model: nn.Module) -> Iterator[None]:
    """Draw freely inside: torch's generators (CPU, and CUDA where `model` is), Python's and numpy's come back."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Buffers may be written or replaced inside; afterwards they are the same tensors with the same values."""
    kept = [
        (owner, name, buffer, buffer.clone())
        for owner in model.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in kept:
                buffer.copy_(value)
                owner._buffers[name] = buffer


@contextlib.contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Inside, `model` may be put in train or eval; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
