"""The `model.py` that stands before a compiled file: it loads it and checks the inputs, which the file does not.

Neither frozen TorchScript nor an AOTInductor package says no to an input that it was not made for:
the one may answer with what it took for a constant, the other reads past the end of a tensor.
"""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_SOURCE = '''"""{title}

{about} Needs nothing but torch, of version {version} or one that reads its files.

    from model import load
    model = load("{file}")

For evaluation only; it runs without gradients. Other inputs than these raise ValueError:

{inputs}
"""

import math

import torch


def _require(holds, what):
    if not holds:
        raise ValueError(f"this form is good only for inputs with {{what}}")


class Model:
    EVALUATION_ONLY = True

    def __init__(self, run):
        self._run = run

    def _check(self, {names}):
{checks}

    def __call__(self, {names}):
        self._check({names})
        with torch.no_grad():
            return self._run({arguments})


def load(path="{file}"):
    """The model, ready to be called."""
    return Model({loader})
'''


def frozen_source(
    title: str,
    about: str,
    file: str,
    loader: str,
    arguments: str,
    named: Mapping[str, Any],
    checks: list[str],
    inputs: Iterable[str],
) -> str:
    """The text. `loader` is an expression of `path`, `arguments` what it is called with, `checks` statements."""
    names = ", ".join(named)
    return _SOURCE.format(
        title=title,
        about=about,
        version=torch.__version__.partition("+")[0],
        file=file,
        inputs=textwrap.indent("\n".join(inputs), "    "),
        names=names,
        checks=textwrap.indent("\n".join(checks or ["pass"]), " " * 8),
        arguments=arguments,
        loader=loader,
    )


def near(a: list[Any], b: list[Any]) -> bool:
    """Whether two flat outputs say the same within 0.1 % of the largest value.

    A form that took a size for a constant is further away, one that rounds in another order is not.
    """
    if len(a) != len(b):
        return False
    pairs = zip(a, b, strict=True)
    return all(_near(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y for x, y in pairs)


def _near(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.numel() or not a.is_floating_point():
        return torch.equal(a, b)
    finite = b[b.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)
