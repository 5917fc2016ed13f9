"""Write a grown model as plain torch source with its weights: no Esper needed to use it.

The forward is traced symbolically (torch.fx), so grafts become ordinary lines of it.
Layers of torch.nn stay layers; blueprints become small classes; anything else is
traced through. The result is run against the model before it is given out.
"""

import builtins
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from esper.blueprint.emit import IMPORTS, emit_module
from esper.blueprint.lower import Lowered
from esper.errors import PreconditionFailed
from esper.host.constructor import constructor_call
from esper.host.trace import Example, trace

_HEADER = '''"""{title}

Plain torch: needs nothing but torch.

    from model import load
    model = load("model.pt")
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
'''
_LOAD = '''

def load(path="model.pt"):
    """The model with its weights, in eval mode."""
    model = Model()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()
'''


# torch.fx ends a line by dropping values after their last use; for a reader that is noise
_RELEASE = re.compile(r";  (\w+ = )+None")
# names by which torch.fx writes values that have no source of their own
_CONSTANTS = {
    "inf": "from math import inf",
    "nan": "from math import nan",
    "device": "from torch import device",
    "NoneType": "NoneType = type(None)",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """Source of `model.py` and the tensors of `model.pt`."""

    source: str
    state: dict[str, Tensor]


def export_model(model: nn.Module, example: Example, title: str) -> Exported:
    """`model`, traced in eval mode, as plain torch.

    `example` are its arguments, by position or by name, on which the source must agree with
    it bit for bit. The source takes these arguments; others are the defaults they have. An
    output class of another package is written as a dict.

    Raises PreconditionFailed for a model that cannot be traced, with the place and the reason.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        graph, held = trace(model, example)
        classes: dict[str, str] = {}
        lines = _constructor(held, graph, classes)
        source = _write(title, classes, lines, graph, type(model).__name__)
        state = _state(held, graph)
        _prove(source, state, model, example)
    finally:
        for module, mode in training.items():
            module.training = mode
    return Exported(source, state)


def _constructor(model: nn.Module, graph: fx.Graph, classes: dict[str, str]) -> list[str]:
    """Statements of `Model.__init__` that make every layer and tensor the graph uses."""
    layers = _targets(graph, "call_module")
    lines: list[str] = []
    made: set[str] = set()
    for path in layers:
        _containers(path, made, lines)
        lines.append(f"{_owner(path)}.add_module({_leaf(path)!r}, {_layer(model.get_submodule(path), classes)})")
        made.add(path)  # a layer that carries grafts is also what encloses them
    for path in _targets(graph, "get_attr"):
        if path.rpartition(".")[0] not in layers:  # otherwise the layer brings it
            _containers(path, made, lines)
            lines.append(_tensor(path, _attribute(model, path)))
    return lines


def _targets(graph: fx.Graph, op: str) -> list[str]:
    return list(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == op))


def _containers(path: str, made: set[str], lines: list[str]) -> None:
    """Empty modules for the enclosing names of a path."""
    parts = path.split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        if prefix not in made:
            made.add(prefix)
            lines.append(f"{_owner(prefix)}.add_module({_leaf(prefix)!r}, nn.Module())")


def _owner(path: str) -> str:
    parent = path.rpartition(".")[0]
    return f"self.get_submodule({parent!r})" if parent else "self"


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _layer(module: nn.Module, classes: dict[str, str]) -> str:
    if isinstance(module, Lowered):
        name = f"Blueprint{len(classes) + 1}"
        body = emit_module(module.graph, module.interface, name).removeprefix(IMPORTS).strip()
        known = next((n for n, text in classes.items() if text.replace(n, name, 1) == body), None)
        if known is None:
            classes[name] = body
        dtype = next((p.dtype for p in module.parameters()), module.interface.dtype)
        return f"{known or name}()" + ("" if dtype is module.interface.dtype else f".to({dtype})")
    expression = constructor_call(module)
    assert expression is not None
    return expression


def _tensor(path: str, tensor: Tensor) -> str:
    empty = f"torch.empty({tuple(tensor.shape)}, dtype={tensor.dtype})"
    if isinstance(tensor, nn.Parameter):
        return f"{_owner(path)}.register_parameter({_leaf(path)!r}, nn.Parameter({empty}))"
    return f"{_owner(path)}.register_buffer({_leaf(path)!r}, {empty})"


def _attribute(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    value = getattr(model.get_submodule(owner), name)
    if not isinstance(value, Tensor):
        raise PreconditionFailed(f"{path} is a {type(value).__name__}, and plain source holds tensors only")
    return value


def _write(title: str, classes: dict[str, str], lines: list[str], graph: fx.Graph, name: str) -> str:
    code = graph.python_code("self")
    own = code.src[code.src.index("def forward(") :]  # statements before it serve another trace
    forward = textwrap.indent(_RELEASE.sub("", own.strip()), "    ")
    init = textwrap.indent("\n".join(lines), " " * 8)
    header = _HEADER.format(title=title) + "".join(f"{line}\n" for line in _imports(code.globals, forward, name))
    parts = [header, *(f"\n\n{text.strip()}\n" for text in classes.values())]
    parts.append(
        f"\n\nclass Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n{init}\n\n{forward}\n"
    )
    return "".join(parts) + _LOAD


def _imports(names: Mapping[str, Any], forward: str, model: str) -> list[str]:
    """Lines that define what the forward names beside torch. Raises PreconditionFailed for another package's."""
    lines = []
    for name, value in sorted(names.items()):
        if name == "torch" or not re.search(rf"\b{name}\b", forward) or getattr(builtins, name, None) is value:
            continue
        module, own = getattr(value, "__module__", "") or "", getattr(value, "__qualname__", name)
        if name in _CONSTANTS:
            lines.append(_CONSTANTS[name])
        elif module.partition(".")[0] in sys.stdlib_module_names and own.isidentifier():
            lines.append(f"from {module} import {own} as {name}")
        else:
            raise PreconditionFailed(
                f"{model} cannot be written as plain source: its forward uses "
                f"{module or type(value).__module__}.{own}, which plain torch does not have"
            )
    return lines


def _state(held: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """The tensors that the graph uses: of whole layers their state, else the tensor itself, persistent or not."""
    layers = _targets(graph, "call_module")
    within = tuple(f"{path}." for path in layers)
    state = {name: tensor for name, tensor in held.state_dict().items() if name.startswith(within)}
    state |= {path: _attribute(held, path) for path in _targets(graph, "get_attr")}
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _prove(source: str, state: dict[str, Tensor], model: nn.Module, example: Example) -> None:
    """Run the source and compare. Raises PreconditionFailed where it does not say the same."""
    name = type(model).__name__
    try:
        made = run_source(source)
        made.load_state_dict(state)
        got = _leaves(made.eval(), example)
    except Exception as error:  # source of a graph that says something else than the model may fail in any way
        raise PreconditionFailed(
            f"the plain source of {name} does not run ({type(error).__name__}: {error}); its forward depends on "
            "something a trace does not see"
        ) from error
    want = _leaves(model, example)
    if len(got) != len(want) or not all(map(_same, got, want)):
        pairs = [(a, b) for a, b in zip(got, want, strict=False) if isinstance(a, Tensor) and isinstance(b, Tensor)]
        raise PreconditionFailed(
            f"the plain source of {name} gives other outputs (largest difference {_largest(pairs):.3g}); "
            "its forward depends on something a trace does not see"
        )


def _leaves(model: nn.Module, example: Example) -> list[Any]:
    with torch.no_grad():
        output = model(**example) if isinstance(example, Mapping) else model(*example)
    return [leaf for leaf in _pytree.tree_leaves(output) if leaf is not None]


def _same(a: Any, b: Any) -> bool:
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    return a.dtype == b.dtype and torch.equal(a, b) if both else type(a) is type(b) and bool(a == b)


def _largest(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Largest difference between tensors of one shape."""
    fitting = [(a.double() - b.double()).abs().max() for a, b in pairs if a.shape == b.shape and a.numel()]
    return max((float(d) for d in fitting), default=float("nan"))


def run_source(source: str) -> nn.Module:
    """A fresh `Model` of exported source."""
    space: dict[str, Any] = {"__name__": "exported_model"}
    exec(compile(source, "model.py", "exec"), space)
    model: nn.Module = space["Model"]()
    return model
