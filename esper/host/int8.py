"""Linear layers of a traced graph in int8: the weights ahead of time, what they multiply as it comes. For the CPU.

Symmetric, a scale per output of the weight and per row of the input, products summed in int32:
the scheme of torchao's Int8DynamicActivationInt8Weight, in torch's own operations, so that a
reader needs no package besides torch. `torch.ao.quantization` is announced to be removed.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_LINEAR = (F.linear, torch.ops.aten.linear.default)
_MOST_INPUTS = 2**31 // 127**2  # of more products int32 may not hold the sum


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times an int8 weight [in, out] with a scale [out] for each of its columns, in int8."""
    rows = x.reshape(-1, x.shape[-1])
    step = rows.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    products = torch._int_mm((rows / step).round().to(torch.int8), weight)
    y = products * step * scale
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], weight.shape[1])


def quantise_linears(graph: fx.Graph, held: nn.Module) -> list[str]:
    """Put linear layers with float32 weights of their own into int8, in place. Returns the names of the weights.

    Layers of torch.nn that have linear layers inside (attention, encoder layers, recurrent ones) are left, and
    weights that something else reads too, as an embedding tied to an output does: int8 beside them saves nothing.
    """
    found: dict[str, None] = {}
    shared = _read_elsewhere(graph, held)
    for node in list(graph.nodes):
        call = _linear_call(node, held)
        if call is None or id(_tensor(held, call[1])) in shared:
            continue
        x, name, bias = call
        _add_int8(held, name)
        found[name] = None
        with graph.inserting_before(node):
            weight, scale = (graph.create_node("get_attr", f"{name}_{part}") for part in ("int8", "scale"))
            shift = graph.create_node("get_attr", bias) if isinstance(bias, str) else bias
            # named, because a value of the function's own name would hide it in the source
            made = graph.create_node("call_function", int8_linear, (x, weight, scale, shift), name="linear")
            node.replace_all_uses_with(made)
        graph.erase_node(node)
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return list(found)


def _linear_call(node: fx.Node, held: nn.Module) -> tuple[Any, str, Any] | None:
    """Input, name of the weight, and bias (a name or a value) of a call that can be in int8."""
    if node.op == "call_module" and type(layer := held.get_submodule(str(node.target))) is nn.Linear:
        x, name = (*node.args, *node.kwargs.values())[0], f"{node.target}.weight"
        bias: Any = None if layer.bias is None else f"{node.target}.bias"
    elif node.op == "call_function" and node.target in _LINEAR:
        x, weight, bias = _arguments(node)
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        name = str(weight.target)
    else:
        return None
    tensor = _tensor(held, name)
    fits = tensor.dim() == 2 and tensor.dtype is torch.float32 and 0 < tensor.shape[1] <= _MOST_INPUTS
    return (x, name, bias) if fits else None


def _read_elsewhere(graph: fx.Graph, held: nn.Module) -> set[int]:
    """Ids of the tensors that are read by anything but a call that can be in int8, under whatever name."""
    calls = {node for node in graph.nodes if _linear_call(node, held) is not None}
    found: set[int] = set()
    for node in graph.nodes:
        if node.op == "call_module" and node not in calls:
            found.update(map(id, held.get_submodule(str(node.target)).parameters()))
        elif node.op == "get_attr" and any(user not in calls or _weight_of(user) is not node for user in node.users):
            found.add(id(_tensor(held, str(node.target))))
    return found


def _weight_of(call: fx.Node) -> Any:
    return _arguments(call)[1] if call.op == "call_function" else None


def _tensor(held: nn.Module, name: str) -> Any:
    return operator.attrgetter(name)(held)


def _arguments(node: fx.Node) -> tuple[Any, Any, Any]:
    given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
    return given["input"], given["weight"], given.get("bias")


def _add_int8(held: nn.Module, name: str) -> None:
    """Beside a weight [out, in], its int8 form [in, out] and the scale of each output."""
    path, _, leaf = name.rpartition(".")
    owner = held.get_submodule(path)
    if hasattr(owner, f"{leaf}_int8"):
        return  # a layer that is called twice
    weight: Tensor = getattr(owner, leaf).detach()
    scale = weight.abs().amax(1).clamp(min=1e-30) / 127
    owner.register_buffer(f"{leaf}_int8", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
    owner.register_buffer(f"{leaf}_scale", scale)
