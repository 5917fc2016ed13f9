"""Forms of a finished model for inference: int8, bf16, frozen TorchScript, an AOTInductor package."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from esper.errors import InvalidConfig, PreconditionFailed
from esper.host import aot, torchscript
from esper.host.export import export_model, run_source, saved
from esper.host.half import in_bf16
from esper.host.int8 import quantise_linears

WEIGHTS = "model.pt"


@dataclass(frozen=True, slots=True)
class Form:
    """What is written, `source` as model.py and `data` as the file that its `load()` reads, and what was done."""

    source: str
    file: str
    data: bytes
    changed: str
    left: str = ""


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a form is made of. `plain` is the float32 model in plain torch.

    `model` is the same, or the user's where plain is a program, which was traced once and cannot be traced by
    torch.fx again.
    """

    model: nn.Module
    plain: nn.Module
    example: tuple[Any, ...]
    title: str


def refuse_unknown_form(name: str) -> None:
    """Raise InvalidConfig unless `name` is a form; the message names the nearest."""
    if name not in FORMS:
        near = difflib.get_close_matches(name, FORMS, n=1, cutoff=0.0)
        raise InvalidConfig(f"no form {name!r}; did you mean {near[0]!r}? Known: {', '.join(FORMS)}")


def make_form(name: str, model: nn.Module, example: tuple[Any, ...], title: str) -> tuple[Form, nn.Module, int]:
    """A form of `model`, the float32 model in plain torch that it is a form of, and the bytes of that one's files.

    `example` are arguments by position. Raises InvalidConfig for an unknown form, PreconditionFailed for a
    model that cannot be written in it, with the reason and the remedy, Unavailable where a tool is absent.
    """
    refuse_unknown_form(name)
    exported = export_model(model, example, title)
    plain = run_source(exported.source)
    plain.load_state_dict(exported.state)
    plain.eval()
    type(plain).__name__ = type(model).__name__  # by which a refusal calls it
    size_bytes = len(exported.source.encode()) + len(saved(exported.state))
    basis = _Basis(model if exported.evaluation_only else plain, plain, example, title)
    return FORMS[name](basis), plain, size_bytes


def _int8(basis: _Basis) -> Form:
    quantised: dict[str, None] = {}

    def rewrite(graph: fx.Graph, held: nn.Module) -> None:
        quantised.clear()
        quantised.update(dict.fromkeys(quantise_linears(graph, held)))

    exported = export_model(
        copy.deepcopy(basis.model), basis.example, f"{basis.title} Linear layers in int8, for the CPU.", rewrite
    )
    left = _matrices(basis.plain.state_dict(), quantised)
    if not quantised:
        raise PreconditionFailed(
            f"int8: nothing of {type(basis.model).__name__} can be quantised: it has no linear layer with a float32 "
            f"weight of its own, and convolutions and embeddings stay as they are ({_listed(left)}); "
            "ask for bf16 or inference"
        )
    return Form(
        exported.source,
        WEIGHTS,
        saved(exported.state),
        f"linear layers in int8: {_listed(quantised)}",
        f"in float32: {_listed(left)}" if left else "",
    )


def _bf16(basis: _Basis) -> Form:
    half = in_bf16(basis.model, basis.example)
    exported = export_model(
        half, basis.example, f"{basis.title} Weights and arithmetic in bfloat16.", computed_in=torch.bfloat16
    )
    count = sum(tensor.dtype is torch.bfloat16 for tensor in exported.state.values())
    left = [name for name, tensor in exported.state.items() if tensor.dtype is not torch.bfloat16]
    if not count:
        raise PreconditionFailed(f"bf16: {type(basis.model).__name__} has no floating weights; ask for inference")
    return Form(
        exported.source,
        WEIGHTS,
        saved(exported.state),
        f"{count} tensors in bfloat16; inputs and outputs as before",
        f"as they were: {_listed(left)}" if left else "",
    )


def _inference(basis: _Basis) -> Form:
    source, data = torchscript.freeze(basis.model, basis.plain, basis.example, basis.title)
    return Form(source, torchscript.FILE, data, "frozen TorchScript, optimised for inference when it is loaded")


def _aot(basis: _Basis) -> Form:
    source, data = aot.compile_package(basis.model, basis.example, basis.title)
    return Form(source, aot.FILE, data, "compiled by AOTInductor for this kind of machine")


FORMS = {"int8": _int8, "bf16": _bf16, "inference": _inference, "aot": _aot}


def _matrices(state: Mapping[str, Tensor], without: Iterable[str]) -> list[str]:
    """Names of the weights of two or more dimensions, those in `without` left out."""
    out = set(without)
    return [name for name, t in state.items() if t.dim() > 1 and t.is_floating_point() and name not in out]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "none"
