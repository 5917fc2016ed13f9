"""Write a grown model as plain torch source with its weights: no Esper needed to use it.

The forward is traced symbolically (torch.fx), so grafts become ordinary lines of it.
Layers of torch.nn stay layers; blueprints become small classes; anything else is
traced through. The result is run against the model before it is given out.
"""

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from esper.blueprint.emit import IMPORTS, emit_module
from esper.blueprint.lower import Lowered
from esper.errors import PreconditionFailed
from esper.host.forward import bare, grafts_of

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


@dataclass(frozen=True, slots=True)
class Exported:
    """Source of `model.py` and the tensors of `model.pt`."""

    source: str
    state: dict[str, Tensor]


def export_model(model: nn.Module, example: tuple[Any, ...], title: str) -> Exported:
    """`model`, traced in eval mode, as plain torch; `example` are inputs it must agree on, bit for bit.

    Raises PreconditionFailed for a model that cannot be traced, with the place and the reason.
    """
    training = model.training
    model.eval()
    try:
        graph = _trace(model)
        classes: dict[str, str] = {}
        lines = _constructor(model, graph, classes)
        source = _write(title, classes, lines, graph)
        state = _state(model, graph)
        _prove(source, state, model, example)
    finally:
        model.train(training)
    return Exported(source, state)


class _Tracer(fx.Tracer):
    """Keeps torch.nn layers and blueprints whole, sites with grafts among them; goes through everything else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Lowered) or (not grafts_of(m) and _is_whole(m))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        grafts = list(grafts_of(m).values())
        if not grafts or not _is_whole(m):
            return super().call_module(m, forward, args, kwargs)
        own: Any = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        in_tuple = grafts[0].layout.first_of_tuple  # of torch.nn's layers those return pairs
        tensor = own[0] if in_tuple else own
        for graft in grafts:
            tensor = graft(tensor)
        return (tensor, own[1]) if in_tuple else tensor


def _is_whole(module: nn.Module) -> bool:
    """Whether a layer of torch.nn can be written as one constructor call, its own grafts left out."""
    inside = (inner for child in bare(module).children() for inner in child.modules())
    return (
        type(module).__module__.startswith("torch.nn")
        and _expression(module) is not None
        and not any(grafts_of(inner) for inner in inside)
    )


def _trace(model: nn.Module) -> fx.Graph:
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # user code meets proxies here and may raise anything
        raise PreconditionFailed(
            f"{type(model).__name__} cannot be written as plain source: its forward cannot be traced ({error}); "
            "a branch on tensor values or a Python loop over one is the usual cause"
        ) from error
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output", "call_module"))
    return graph


def _expression(module: nn.Module) -> str | None:
    """A constructor call that makes an equal layer, or None where its repr is not one."""
    module = bare(module)
    if isinstance(module, nn.TransformerEncoderLayer):
        return _encoder_layer(module)
    if isinstance(module, nn.MultiheadAttention):
        arguments = (
            f"{module.embed_dim}, {module.num_heads}, dropout={module.dropout}, "
            f"bias={module.in_proj_bias is not None}, batch_first={module.batch_first}"
        )
        return f"nn.MultiheadAttention({arguments})"
    if any(True for _ in module.children()):
        return None
    text = f"nn.{module!r}"
    try:
        made = eval(text, {"nn": nn, "torch": torch})
    except Exception:  # a repr that is not a constructor call may fail in any way
        return None
    same = {k: v.shape for k, v in made.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}
    return text if type(made) is type(module) and same else None


def _encoder_layer(module: nn.TransformerEncoderLayer) -> str | None:
    activation = {F.relu: "relu", F.gelu: "gelu"}.get(module.activation)
    if activation is None:
        return None
    attention = module.self_attn
    return (
        f"nn.TransformerEncoderLayer({attention.embed_dim}, {attention.num_heads}, {module.linear1.out_features}, "
        f"{module.dropout.p}, {activation!r}, {module.norm1.eps}, batch_first={attention.batch_first}, "
        f"norm_first={module.norm_first}, bias={module.linear1.bias is not None})"
    )


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
        return f"{known or name}()"
    expression = _expression(module)
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


def _write(title: str, classes: dict[str, str], lines: list[str], graph: fx.Graph) -> str:
    code = graph.python_code("self")
    forward = textwrap.indent(_RELEASE.sub("", code.src.strip()), "    ")
    init = textwrap.indent("\n".join(lines), " " * 8)
    parts = [_HEADER.format(title=title), *(f"\n\n{text.strip()}\n" for text in classes.values())]
    parts.append(
        f"\n\nclass Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n{init}\n\n{forward}\n"
    )
    return "".join(parts) + _LOAD


def _state(model: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """The model's tensors that the graph uses."""
    used = {*_targets(graph, "call_module"), *_targets(graph, "get_attr")}
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if name in used or any(name.startswith(f"{path}.") for path in used)
    }


def _prove(source: str, state: dict[str, Tensor], model: nn.Module, example: tuple[Any, ...]) -> None:
    """Run the source and compare. Raises PreconditionFailed where it does not say the same."""
    made = run_source(source)
    made.load_state_dict(state)
    made.eval()
    with torch.no_grad():
        got, want = made(*example), model(*example)
    if not torch.equal(got, want):
        raise PreconditionFailed(
            f"the plain source of {type(model).__name__} gives other outputs (largest difference "
            f"{float((got - want).abs().max()):.3g}); its forward depends on something a trace does not see"
        )


def run_source(source: str) -> nn.Module:
    """A fresh `Model` of exported source."""
    space: dict[str, Any] = {"__name__": "exported_model"}
    exec(compile(source, "model.py", "exec"), space)
    model: nn.Module = space["Model"]()
    return model
