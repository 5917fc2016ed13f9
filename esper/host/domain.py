"""For which shapes a program that torch.export traced is good, as conditions in plain Python."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._sympy.printers import PythonPrinter

from esper.errors import PreconditionFailed

_KNOWN = frozenset({"min", "max", "math"})  # what a condition may name beside the inputs
LEAST = 2  # torch.export takes a size that may vary to be at least that: 1 means broadcasting


@dataclass(frozen=True, slots=True)
class Domain:
    """`dims`: of each tensor input the name of each size that may vary, or the size that it must have.

    `conditions` are expressions of the inputs, all of which must hold. `batch` is the name of the first
    size of the first tensor input, "" where it is fixed.
    """

    dims: Mapping[str, tuple[str | int, ...]]
    conditions: tuple[str, ...]
    batch: str

    def places(self, size: str) -> list[tuple[str, int]]:
        """Inputs and dimensions that have the size of this name."""
        return [(name, d) for name, dims in self.dims.items() for d, each in enumerate(dims) if each == size]

    def sizes(self) -> list[str]:
        """Names of the sizes that may vary."""
        return list(dict.fromkeys(d for dims in self.dims.values() for d in dims if isinstance(d, str)))


def domain_of(program: ExportedProgram, example: Mapping[str, Any]) -> Domain:
    """What the trace took for granted of its inputs. Raises PreconditionFailed for what Python cannot say."""
    shapes = {name: shape for name, shape in _shapes(program, example).items() if shape is not None}
    at: dict[str, str] = {}  # name of a size -> where it stands first
    for name, shape in shapes.items():
        for d, size in enumerate(shape):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                at.setdefault(str(size.node.expr), f"{name}.shape[{d}]")
    found: list[str] = []
    for name, shape in shapes.items():
        for d, size in enumerate(shape):
            here, wanted = f"{name}.shape[{d}]", _written(size, at)
            if here != wanted:
                found.append(f"{here} == {wanted}")
    found += _ranges(program, at) + _guards(shapes, at)
    dims = {name: tuple(_named(size) for size in shape) for name, shape in shapes.items()}
    first = next((shape[0] for shape in dims.values() if shape), "")
    conditions = tuple(dict.fromkeys(found))
    _check(conditions, example)
    return Domain(dims, conditions, first if isinstance(first, str) and first in at else "")


def _named(size: Any) -> str | int:
    """The name of a size that may vary, or the size."""
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    return int(size) if expression is None or expression.is_Integer else str(expression)


def _shapes(program: ExportedProgram, example: Mapping[str, Any]) -> dict[str, torch.Size | None]:
    """Of each input its shape as traced, of one that is no tensor None."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    traced = [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str) and name in values]
    tensors = iter([value.shape for value in traced if isinstance(value, Tensor)])
    return {name: next(tensors) if isinstance(value, Tensor) else None for name, value in example.items()}


def _ranges(program: ExportedProgram, at: Mapping[str, str]) -> list[str]:
    found = []
    for symbol, allowed in program.range_constraints.items():
        place = at.get(str(symbol))
        if place is not None:
            lower = int(allowed.lower) if allowed.lower.is_Integer else 0
            found.append(f"{place} >= {max(lower, LEAST)}")
            if allowed.upper.is_Integer:
                found.append(f"{place} <= {int(allowed.upper)}")
    return found


def _guards(shapes: Mapping[str, torch.Size | None], at: Mapping[str, str]) -> list[str]:
    """Every branch that the trace took because of a size of the inputs."""
    varying: list[Any] = [size for shape in shapes.values() for size in shape or () if isinstance(size, torch.SymInt)]
    if not varying:
        return []
    env = varying[0].node.shape_env
    # a branch may name a size by which another, found equal to it later, has gone since
    expressions = [env.replace(guard.expr) for guard in env.guards]
    # a size that depends on values is held by the program's own assertions
    known = [each for each in expressions if {str(s) for s in each.free_symbols} <= at.keys()]
    return [_written(each, at) for each in known if each.free_symbols]


def _written(size: Any, at: Mapping[str, str]) -> str:
    """A size, or a condition on sizes, in terms of the inputs."""
    if isinstance(size, int) and not isinstance(size, torch.SymInt):
        return str(size)
    expression = size.node.expr if isinstance(size, torch.SymInt) else size
    text = cast(str, PythonPrinter().doprint(expression))
    return re.sub(r"\b[su]\d+\b", lambda found: at.get(found[0], found[0]), text)


def _check(conditions: tuple[str, ...], example: Mapping[str, Any]) -> None:
    """Raises PreconditionFailed for a condition that is no expression of the inputs."""
    for text in conditions:
        try:
            names = {node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}
        except SyntaxError:
            names = {text}
        if unknown := names - example.keys() - _KNOWN:
            raise PreconditionFailed(f"the condition {text} on its inputs names {', '.join(sorted(unknown))}")
