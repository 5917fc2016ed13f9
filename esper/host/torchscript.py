"""Frozen TorchScript for `torch.jit.optimize_for_inference`: weights as constants, normalisations folded in.

What optimize_for_inference makes of it holds layouts of this machine's oneDNN and cannot be read from
a file (pytorch issue 69608), so the file is the frozen module and each `load()` optimises it anew.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from esper.errors import PreconditionFailed
from esper.host.frozen import frozen_source, near
from esper.host.quiet import quiet
from esper.host.trace import entry_of

FILE = "model.ts"
_ABOUT = "Frozen TorchScript, optimised for inference when it is loaded."
_LOADER = 'torch.jit.optimize_for_inference(torch.jit.load(path, map_location="cpu"))'

Run = Callable[..., Any]


def freeze(model: nn.Module, plain: nn.Module, example: tuple[Any, ...], title: str) -> tuple[str, bytes]:
    """Source of model.py and the bytes of model.ts for a model in eval mode; `plain` is the same in plain torch.

    A size in which the traced form agrees with the model at other values may vary; every other is required.
    Raises PreconditionFailed for a model that cannot be traced, frozen or read back.
    """
    entry, named = entry_of(model, example)
    data = _frozen_bytes(entry, example, type(model).__name__)
    with warnings.catch_warnings(), quiet(), torch.no_grad():
        warnings.simplefilter("ignore")
        run = torch.jit.optimize_for_inference(torch.jit.load(io.BytesIO(data)))
        if not near(_leaves(run, named), _leaves(plain, named)):
            raise _cannot(type(model).__name__, "what it froze to gives other outputs")
        inputs, checks = _conditions(plain, run, named)
    return frozen_source(title, _ABOUT, FILE, _LOADER, ", ".join(named), named, checks, inputs), data


def _frozen_bytes(entry: nn.Module, example: tuple[Any, ...], name: str) -> bytes:
    written = io.BytesIO()
    try:
        with warnings.catch_warnings(), quiet(), torch.no_grad():
            warnings.simplefilter("ignore")  # that TorchScript is to end, and branches on sizes, which are tried below
            traced = torch.jit.trace(entry, example, strict=False, check_trace=False)
            torch.jit.save(torch.jit.freeze(traced), written)
    except Exception as error:  # torch raises what its tracer meets
        raise _cannot(name, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}") from error
    return written.getvalue()


def _cannot(name: str, why: str) -> PreconditionFailed:
    return PreconditionFailed(
        f"inference: {name} cannot be frozen as TorchScript ({why}); ask for another form, or none"
    )


def _conditions(plain: nn.Module, run: Run, named: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Lines for a reader and statements that require what the form takes for granted."""
    inputs, conditions = [], []
    free = {place for places in _moves(named) if _agrees(plain, run, named, places) for place in places}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            conditions.append(f"{name} is {value!r}" if value is None else f"{name} == {value!r}")
            continue
        sizes = ", ".join("*" if (name, d) in free else str(size) for d, size in enumerate(value.shape))
        inputs.append(f"{name}: {value.dtype} [{sizes}]")
        conditions += [f"{name}.dtype is {value.dtype}", f"{name}.dim() == {value.dim()}"]
        conditions += [f"{name}.shape[{d}] == {size}" for d, size in enumerate(value.shape) if (name, d) not in free]
    return inputs, [f"_require({each}, {each!r})" for each in conditions]


def _moves(named: Mapping[str, Any]) -> Iterator[list[tuple[str, int]]]:
    """Sizes that are changed together: the first one of every tensor, then each other one alone."""
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor) and value.dim()}
    yield [(name, 0) for name in tensors]
    yield from ([(name, d)] for name, value in tensors.items() for d in range(1, value.dim()))


def _agrees(plain: nn.Module, run: Run, named: Mapping[str, Any], places: list[tuple[str, int]]) -> bool:
    """Whether form and model say the same at one, one more and twice as many, as far as the model takes those."""
    if not places:
        return False
    own = named[places[0][0]].shape[places[0][1]]
    compared = 0
    for count in {1, own + 1, 2 * own} - {own}:
        other = dict(named)
        for name, d in places:
            rows = torch.arange(count) % named[name].shape[d]
            other[name] = named[name].index_select(d, rows)
        try:
            wanted = _leaves(plain, other)
        except Exception:  # user code, which need not take other sizes
            continue
        try:
            same = near(_leaves(run, other), wanted)
        except Exception:  # the form may fail in any way at a size that it took for a constant
            same = False
        if not same:
            return False
        compared += 1
    return compared > 0


def _leaves(run: Run, named: Mapping[str, Any]) -> list[Any]:
    return [leaf for leaf in _pytree.tree_leaves(run(*named.values())) if leaf is not None]
