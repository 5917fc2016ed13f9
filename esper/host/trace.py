"""Trace a model's forward symbolically, its grafts as ordinary lines.

Layers of torch.nn and blueprints stay whole; everything else is gone through. The
model is not touched: what a trace stores is stored beside it.
"""

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from esper.blueprint.lower import Lowered
from esper.errors import PreconditionFailed
from esper.host.constructor import constructor_call
from esper.host.forward import bare, grafts_of

Example = tuple[Any, ...] | Mapping[str, Any]
_NOT_THE_MODEL = (Path(torch.__file__).parent, Path(__file__).parents[1])  # torch's own frames and Esper's
_FORWARD = "_esper_traced_forward"


def trace(model: nn.Module, example: Example) -> tuple[fx.Graph, nn.Module]:
    """The graph of `model`'s forward as it is called on `example`, and a module that holds what its names stand for.

    The graph takes the example's arguments; any other argument is the default it has.
    Raises PreconditionFailed for a forward that cannot be traced, with the place and the reason.
    """
    entry, _ = entry_of(model, example)
    try:
        graph = _Tracer().trace(entry)
    except Exception as error:  # user code meets proxies here and may raise anything
        raise PreconditionFailed(
            f"{type(model).__name__} cannot be written as plain source: its forward cannot be traced{_place(error)} "
            f"({error}); a branch on tensor values or a Python loop over one is the usual cause"
        ) from error
    graph.eliminate_dead_code(_has_effect)
    return graph, entry


def is_whole(module: nn.Module) -> bool:
    """Whether a layer of torch.nn can be written as one constructor call, its own grafts left out."""
    inside = (inner for child in bare(module).children() for inner in child.modules())
    return (
        type(module).__module__.startswith("torch.nn")
        and constructor_call(module) is not None
        and not any(grafts_of(inner) for inner in inside)
    )


class _Tracer(fx.Tracer):
    """Keeps torch.nn layers and blueprints whole, sites with grafts among them; goes through everything else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Lowered) or (not grafts_of(m) and is_whole(m))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        grafts = list(grafts_of(m).values())
        if not grafts or not is_whole(m):
            return super().call_module(m, forward, args, kwargs)
        own: Any = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        in_tuple = grafts[0].layout.first_of_tuple  # of torch.nn's layers those return pairs
        tensor = own[0] if in_tuple else own
        for graft in grafts:
            tensor = graft(tensor)
        return (tensor, own[1]) if in_tuple else tensor


def entry_of(model: nn.Module, example: Example) -> tuple[nn.Module, dict[str, Any]]:
    """A module with the model's parts and a forward of the example's arguments alone, and those by its names.

    Without it every optional argument would be a proxy, which is not None.
    """
    named = isinstance(example, Mapping)
    names = list(example) if isinstance(example, Mapping) else _positional(model, len(example))
    values = list(example.values()) if isinstance(example, Mapping) else list(example)
    arguments = ", ".join(f"{name}={name}" if named else name for name in names)
    made: dict[str, Any] = {}
    # the model's own globals, because the tracer looks there for functions of `math`
    space = getattr(inspect.unwrap(type(model).forward), "__globals__", {})
    exec(f"def forward(self, {', '.join(names)}):\n    return self.{_FORWARD}({arguments})", space, made)
    entry: nn.Module = type("Entry", (nn.Module,), {"forward": made["forward"]})()
    vars(entry).update(vars(model))
    vars(entry)[_FORWARD] = lambda *args, **kwargs: plain_output(model.forward(*args, **kwargs))
    return entry, dict(zip(names, values, strict=True))


def plain_output(value: Any) -> Any:
    """An output, a dataclass in it as the dict of its fields that are not None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: plain_output(part) for name, part in fields.items() if part is not None}
    if type(value) in (list, tuple):
        return type(value)(plain_output(part) for part in value)
    return {key: plain_output(part) for key, part in value.items()} if type(value) is dict else value


def _positional(model: nn.Module, count: int) -> list[str]:
    """Names for `count` positional arguments: the forward's own, as far as it has some."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    return [*own[:count], *(f"argument_{i}" for i in range(len(own), count))]


def _has_effect(node: fx.Node) -> bool:
    """Whether a node matters though nothing reads what it returns."""
    if node.op in ("placeholder", "output", "call_module"):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name == "setitem" or (name.endswith("_") and not name.endswith("__"))
    return in_place or node.kwargs.get("inplace") is True


def _place(error: Exception) -> str:
    """Where in the model's own code an error came up: " at file:line in function", or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(folder) for folder in _NOT_THE_MODEL)]
    own = [f for f in own if Path(f.filename).suffix == ".py"]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}" if own else ""
