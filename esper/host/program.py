"""Trace a model's forward by torch.export, as operations of torch on its tensors, for evaluation.

It follows branches on shapes, which a symbolic trace cannot, and keeps neither layers nor
what they do in training. Where sizes may vary, what the trace took for granted of them is
written down as conditions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree

from esper.errors import PreconditionFailed
from esper.host.domain import LEAST, Domain, domain_of
from esper.host.forward import PREFIX
from esper.host.quiet import quiet
from esper.host.regions import inline_regions

_OF_TORCH = frozenset({"aten", "prim", "prims"})  # namespaces of operators that every torch has
# sizes of maps meet strides and paddings, whose conditions take minutes to solve
_MOST_DIMS_TO_VARY = 3
_PLAIN = (bool, int, float, str, type(None))
VARYING = ("every size", "the first size", "no size")


@dataclass(frozen=True, slots=True)
class Program:
    """A graph of torch's operations, a module that holds its tensors, and the inputs it is good for.

    `alone` are the conditions for a batch of one, None where there must be more.
    """

    graph: fx.Graph
    held: nn.Module
    domain: Domain
    alone: tuple[str, ...] | None = None


def trace_program(entry: nn.Module, example: Mapping[str, Any], varying: str) -> Program:
    """The program of `entry`, in eval mode, for inputs like `example`, of which as much may vary as `varying` says.

    Raises PreconditionFailed for a forward that torch.export cannot trace, and for operators that are not torch's.
    """
    for name, value in example.items():
        if not isinstance(value, (Tensor, *_PLAIN)):
            raise PreconditionFailed(
                f"its argument {name} is a {type(value).__name__}, neither a tensor nor a constant"
            )
    program = export_program(entry, example, {n: varying_dims(v, varying) for n, v in example.items()})
    domain = domain_of(program, example)
    held = program.module(check_guards=False)
    graph = held.graph
    _rename_inputs(graph, list(example))
    _restructure_output(graph, program.call_spec.out_spec)
    inline_regions(graph, held)
    _drop_idle(graph)
    _follow_device(graph, example)
    _share_tied(graph, held)
    graph.eliminate_dead_code()
    _refuse_foreign(graph)
    return Program(graph, held, domain)


def conditions_alone(entry: nn.Module, example: Mapping[str, Any], domain: Domain) -> tuple[str, ...]:
    """What a trace at a batch of one, of which `example` is one, takes for granted of the other sizes."""
    fixed = set(domain.places(domain.batch))
    dims: dict[str, Any] = {
        name: {
            d: Dim.AUTO for d, size in enumerate(domain.dims[name]) if isinstance(size, str) and (name, d) not in fixed
        }
        if name in domain.dims
        else None
        for name in example
    }
    return domain_of(export_program(entry, example, dims), example).conditions


def fossil_state(held: nn.Module) -> list[str]:
    """Names of the tensors of branches, all of which a rebuilt model asks for."""
    return [name for name in held.state_dict() if PREFIX in name]


def widened(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The example with two rows where it has one, from which no trace would learn that there may be more."""
    tensors = [value for value in example.values() if isinstance(value, Tensor)]
    if not tensors or any(t.dim() == 0 or t.shape[0] != 1 for t in tensors):
        return example
    return {n: torch.cat([v] * LEAST) if isinstance(v, Tensor) else v for n, v in example.items()}


def resized(program: Program, example: Mapping[str, Any], size: str, count: int) -> dict[str, Any]:
    """The example with `count` entries along the dimensions of one size, its own over and over."""
    found = dict(example)
    for name, d in program.domain.places(size):
        rows = torch.arange(count, device=found[name].device) % found[name].shape[d]
        found[name] = found[name].index_select(d, rows)
    return found


def other_sizes(program: Program, example: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The example with one size changed at a time: a batch of one, one more, and twice as many."""
    for size in program.domain.sizes():
        places = program.domain.places(size)
        if places:
            own = example[places[0][0]].shape[places[0][1]]
            counts = [1] * (size == program.domain.batch and program.alone is not None) + [own + 1, 2 * own]
            yield from (resized(program, example, size, count) for count in counts)


def described(program: Program, example: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Of the inputs a program is good for, lines for a reader, and statements that check them."""
    inputs, checks = [], []
    for name, value in example.items():
        if isinstance(value, Tensor):
            sizes = ", ".join(str(d) if isinstance(d, int) else "*" for d in program.domain.dims[name])
            inputs.append(f"{name}: {value.dtype} [{sizes}]")
            checks.append(_required(f"{name}.dtype is {value.dtype}"))
            checks.append(_required(f"{name}.dim() == {value.dim()}"))
        else:
            same = f"{name} is {value!r}" if value is None or isinstance(value, bool) else f"{name} == {value!r}"
            inputs.append(same)
            checks.append(_required(same))
    general = program.domain.conditions
    if program.alone is None:
        return inputs + list(general), checks + [_required(each) for each in general]
    name, d = program.domain.places(program.domain.batch)[0]
    single = f"{name}.shape[{d}] == 1"
    others = [each for each in program.alone if each != single]
    inputs += [*general, f"or {single} and", *others]
    checks += [f"if {single}:", *(f"    {_required(each)}" for each in others or ("True",))]
    return inputs, [*checks, "else:", *(f"    {_required(each)}" for each in general)]


def _required(condition: str) -> str:
    return f"_require({condition}, {condition!r})"


def varying_dims(value: Any, varying: str) -> Any:
    """For torch.export: the dimensions of an argument that may vary; None for none."""
    if not isinstance(value, Tensor) or varying == VARYING[2]:
        return None
    every = varying == VARYING[0] and value.dim() <= _MOST_DIMS_TO_VARY
    return dict.fromkeys(range(value.dim() if every else min(1, value.dim())), Dim.AUTO)


def export_program(entry: nn.Module, example: Mapping[str, Any], dims: Mapping[str, Any]) -> ExportedProgram:
    """torch.export of `entry` with the given dynamic dimensions. Raises PreconditionFailed where it cannot trace it."""
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(entry, (), dict(example), dynamic_shapes=dict(dims), strict=False)
    except Exception as error:  # user code meets fake tensors here and may raise anything
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise PreconditionFailed(f"{type(error).__name__}: {said.strip()}") from error


def _rename_inputs(graph: fx.Graph, names: list[str]) -> None:
    graph.set_codegen(fx.graph.CodeGen())  # instead of one that takes the arguments apart by their tree
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(inputs, names, strict=True):
        node.target = name


def _restructure_output(graph: fx.Graph, spec: _pytree.TreeSpec) -> None:
    """Give the flat results the structure that the model's output has; a class of another package is a dict."""
    output = graph.output_node()
    leaves = iter(_pytree.tree_leaves(output.args[0]))
    output.args = (_structure(spec, leaves),)


def _structure(spec: _pytree.TreeSpec, leaves: Iterator[Any]) -> Any:
    if spec.is_leaf():
        return next(leaves)
    parts = [_structure(child, leaves) for child in spec.children()]
    if spec.type is list:
        return parts
    # a dict says its keys, a defaultdict or a dataclass its keys among other things
    context = spec.context if isinstance(spec.context, list | tuple) and spec.type is not tuple else []
    for keys in (context, *context):
        if isinstance(keys, list | tuple) and len(keys) == len(parts) and all(isinstance(k, str | int) for k in keys):
            return dict(zip(keys, parts, strict=True))
    return tuple(parts)


def _drop_idle(graph: fx.Graph) -> None:
    """Take out what does nothing: dropout that drops nothing, and checks of types.

    The inputs' types are checked at the entrance; the weights' are those of the state.
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.dropout.default and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)


def _follow_device(graph: fx.Graph, example: Mapping[str, Any]) -> None:
    """Make new tensors on the device of the first input, wherever that will be."""
    tensors = [name for name, value in example.items() if isinstance(value, Tensor)]
    if not tensors:
        return
    device = example[tensors[0]].device
    first = next(node for node in graph.nodes if node.op == "placeholder" and node.target == tensors[0])
    with graph.inserting_after(next(node for node in reversed(graph.nodes) if node.op == "placeholder")):
        there = graph.call_function(getattr, (first, "device"))
    for node in graph.nodes:
        if node is not there:
            replace = lambda leaf: there if isinstance(leaf, torch.device) and leaf == device else leaf  # noqa: E731
            node.args = fx.node.map_aggregate(node.args, replace)
            node.kwargs = fx.node.map_aggregate(node.kwargs, replace)


def _share_tied(graph: fx.Graph, held: nn.Module) -> None:
    """One name for a tensor that the model has under several."""
    names: dict[int, str] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            node.target = names.setdefault(id(getattr(held.get_submodule(owner), name)), str(node.target))


def _refuse_foreign(graph: fx.Graph) -> None:
    """Raises PreconditionFailed for what only another package can run."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _OF_TORCH:
            raise PreconditionFailed(f"its forward uses {node.target}, which plain torch does not have")
