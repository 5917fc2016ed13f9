"""An AOTInductor package of a model: torch.export's program compiled to native code that loads without a compiler."""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from esper.errors import PreconditionFailed, Unavailable
from esper.host.domain import domain_of
from esper.host.frozen import frozen_source, near
from esper.host.program import (
    VARYING,
    Program,
    conditions_alone,
    described,
    export_program,
    other_sizes,
    resized,
    varying_dims,
    widened,
)
from esper.host.quiet import quiet
from esper.host.trace import entry_of

FILE = "model.pt2"
_ABOUT = "An AOTInductor package: native code for the kind of machine that it was compiled on."


def compile_package(model: nn.Module, example: tuple[Any, ...], title: str) -> tuple[str, bytes]:
    """Source of model.py and the bytes of model.pt2 for a model in eval mode, in some 20 s or more.

    Raises Unavailable without a C++ compiler, PreconditionFailed for a model that torch.export cannot trace
    or Inductor not compile, and where the package says something else than the model.
    """
    _require_compiler()
    entry, named = entry_of(model, example)
    reason: Exception | None = None
    for varying in VARYING:
        traced = named if varying is VARYING[-1] else widened(named)
        try:
            return _package(entry, traced, varying, title)
        except PreconditionFailed as error:
            reason = error
    raise PreconditionFailed(
        f"aot: {type(model).__name__} cannot be compiled ahead of time ({reason}); ask for another form, or none"
    ) from reason


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise Unavailable(
            f"aot: a C++ compiler is needed, and there is none ({error}); "
            "install g++ (`make deps-debian`), or name one in CXX"
        ) from error


def _package(entry: nn.Module, named: Mapping[str, Any], varying: str, title: str) -> tuple[str, bytes]:
    exported = export_program(entry, named, {name: varying_dims(value, varying) for name, value in named.items()})
    program = Program(exported.graph, entry, domain_of(exported, named))
    with tempfile.TemporaryDirectory(prefix="esper-aot-") as folder:
        path = Path(folder) / FILE
        try:
            with warnings.catch_warnings(), quiet():
                warnings.simplefilter("ignore")
                torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
                run = torch._inductor.aoti_load_package(str(path))
        except Exception as error:  # whatever Inductor or the compiler meets
            said = (str(error).strip().splitlines() or [""])[0][:300]
            raise PreconditionFailed(f"{type(error).__name__}: {said}") from error
        inputs, checks = described(_proven(program, entry, run, named), named)
        arguments = ", ".join(f"{name}={name}" for name in named)
        loader = "torch._inductor.aoti_load_package(path)"
        return frozen_source(title, _ABOUT, FILE, loader, arguments, named, checks, inputs), path.read_bytes()


def _proven(program: Program, entry: nn.Module, run: Callable[..., Any], named: Mapping[str, Any]) -> Program:
    """The program, good for a batch of one too where the package is. Raises PreconditionFailed where it is wrong."""
    for other in [named, *other_sizes(program, named)]:
        if _says_the_same(entry, run, other) is False:
            raise PreconditionFailed("the package fails, or gives other outputs than the model")
    if program.domain.batch:
        single = resized(program, named, program.domain.batch, 1)
        try:
            alone = conditions_alone(entry, single, program.domain)
        except PreconditionFailed:
            return program
        if _says_the_same(entry, run, single):
            return Program(program.graph, entry, program.domain, alone)
    return program


def _says_the_same(entry: nn.Module, run: Callable[..., Any], named: Mapping[str, Any]) -> bool | None:
    """None where the model itself does not take these inputs."""
    with torch.no_grad():
        try:
            wanted = _pytree.tree_leaves(entry(**named))
        except Exception:  # user code, which need not take other sizes
            return None
        try:
            return near(_pytree.tree_leaves(run(**named)), wanted)
        except Exception:  # the package may fail in any way at a size that it is not good for
            return False
