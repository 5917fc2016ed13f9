"""Write a traced graph and the tensors that it uses as the text of a plain torch module.

Layers of torch.nn become constructor calls, blueprints small classes, anything else a
tensor of its own by the name that it has in the model.
"""

import builtins
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from esper.blueprint.emit import IMPORTS, emit_module
from esper.blueprint.lower import Lowered
from esper.errors import PreconditionFailed
from esper.host.constructor import constructor_call
from esper.host.int8 import int8_linear

_HEADER = '''"""{about}"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
'''
_NEEDS = """Plain torch: needs nothing but torch.

    from model import load
    model = load("model.pt")
"""
_EVALUATION = """
A program for evaluation, traced in eval mode: dropout drops nothing, normalisation uses its running figures,
and train() raises. Other inputs than these raise ValueError:

{inputs}
"""
_MODEL = """

class Model(nn.Module):
    def __init__(self):
        super().__init__()
{init}

{rest}
"""
_TRAIN = '''EVALUATION_ONLY = True

def train(self, mode=True):
    """Eval mode only."""
    if mode:
        raise RuntimeError("this model is a program for evaluation and cannot be set to train")
    return super().train(mode)'''
_REQUIRE = """

def _require(holds, what):
    if not holds:
        raise ValueError(f"this program is good only for inputs with {what}")
"""
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


# functions of Esper's own that a graph may call: their text goes into the source
_WRITTEN_OUT = (int8_linear,)


def constructor_lines(
    model: nn.Module, graph: fx.Graph, classes: dict[str, str], extra: Iterable[str] = ()
) -> list[str]:
    """Statements of `Model.__init__` that make every layer and tensor the graph uses, and tensors named in `extra`."""
    layers = _targets(graph, "call_module")
    lines: list[str] = []
    made: set[str] = set()
    for path in layers:
        _containers(path, made, lines)
        lines.append(f"{_owner(path)}.add_module({_leaf(path)!r}, {_layer(model.get_submodule(path), classes)})")
        made.add(path)  # a layer that carries grafts is also what encloses them
    for path in dict.fromkeys([*_targets(graph, "get_attr"), *extra]):
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


def write_layers(title: str, classes: dict[str, str], lines: list[str], graph: fx.Graph, name: str) -> str:
    """Source of a module of layers; `name` is what a refusal calls the model."""
    forward, imports = _forward(graph, name)
    header = _HEADER.format(about=f"{title}\n\n{_NEEDS}") + imports
    parts = [header, *(f"\n\n{text.strip()}\n" for text in classes.values())]
    return "".join(parts) + _MODEL.format(init=_block(lines, 8), rest=_block([forward], 4)) + _LOAD


def write_program(title: str, inputs: list[str], checks: list[str], lines: list[str], graph: fx.Graph) -> str:
    """Source of a module for evaluation.

    `inputs` say what it is good for, for a reader; `checks` are statements that raise for any other input.
    """
    forward, imports = _forward(graph, "the model")
    about = f"{title}\n\n{_NEEDS}{_EVALUATION.format(inputs=_block(inputs, 4))}"
    names = ", ".join(str(node.target) for node in graph.nodes if node.op == "placeholder")
    check = f"def _check(self, {names}):\n{_block(checks or ['pass'], 4)}"
    head, body = forward.split("\n", 1)
    called = f"{head}\n    self._check({names})\n{body}"
    imports += "import math\n" if any("math." in line for line in checks) else ""
    rest = _block([_TRAIN, "", check, "", called], 4)
    return _HEADER.format(about=about) + imports + _REQUIRE + _MODEL.format(init=_block(lines, 8), rest=rest) + _LOAD


def is_exported(source: str) -> bool:
    """Whether a model.py has the docstring by which every export says how it is used, and so may be replaced by one."""
    start, quotes, rest = source.partition('"""')
    return bool(quotes) and not start and _NEEDS in rest.partition('"""')[0]


def _forward(graph: fx.Graph, name: str) -> tuple[str, str]:
    """The text of `forward`, not indented, and lines that define what it names beside torch."""
    code = graph.python_code("self")
    own = code.src[code.src.index("def forward(") :]  # statements before it serve another trace
    forward = _RELEASE.sub("", own.strip())
    imports = "".join(f"{line}\n" for line in _imports(code.globals, forward, name))
    for alias, value in code.globals.items():  # torch.fx puts the module before the name
        if value in _WRITTEN_OUT:
            forward = re.sub(rf"\b{alias}\b", value.__name__, forward)
    return forward, imports


def _block(lines: Iterable[str], columns: int) -> str:
    return textwrap.indent("\n".join(lines), " " * columns)


def _imports(names: Mapping[str, Any], forward: str, model: str) -> list[str]:
    """Lines that define what the forward names beside torch. Raises PreconditionFailed for another package's."""
    lines: list[str] = []
    functions: list[str] = []
    for name, value in sorted(names.items()):
        if name == "torch" or not re.search(rf"\b{name}\b", forward) or getattr(builtins, name, None) is value:
            continue
        module, own = getattr(value, "__module__", "") or "", getattr(value, "__qualname__", name)
        if name in _CONSTANTS:
            lines.append(_CONSTANTS[name])
        elif value in _WRITTEN_OUT:
            functions.append("\n\n" + inspect.getsource(value).rstrip())
        elif module.partition(".")[0] in sys.stdlib_module_names and own.isidentifier():
            lines.append(f"from {module} import {own} as {name}")
        else:
            raise PreconditionFailed(
                f"{model} cannot be written as plain source: its forward uses "
                f"{module or type(value).__module__}.{own}, which plain torch does not have"
            )
    return lines + functions


def state_of(held: nn.Module, graph: fx.Graph, extra: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors that the graph uses: of whole layers their state, else the tensor itself, persistent or not.

    Those named in `extra` are in it too.
    """
    layers = _targets(graph, "call_module")
    within = tuple(f"{path}." for path in layers)
    state = {name: tensor for name, tensor in held.state_dict().items() if name.startswith(within)}
    state |= {path: _attribute(held, path) for path in [*_targets(graph, "get_attr"), *extra]}
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
