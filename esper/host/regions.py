"""Put the operations of a region back in line: torch.export keeps one for each `with` of grad mode or autocast."""

import operator
from typing import Any

import torch
from torch import fx, nn

from esper.errors import PreconditionFailed

_AUTOCAST, _GRAD = "wrap_with_autocast", "wrap_with_set_grad_enabled"
_ENABLED = 2  # position of that argument of a region of autocast


def inline_regions(graph: fx.Graph, held: nn.Module) -> None:
    """In line where that says the same: of grad mode always, of autocast where the region turns it off.

    Raises PreconditionFailed for any other, by the name of its operator.
    """
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        name = node.target.name()
        if name != _GRAD and (name != _AUTOCAST or node.args[_ENABLED] is not False):
            raise PreconditionFailed(f"its forward uses {name}, which has no plain source")
        _inline(graph, node, held)


def _inline(graph: fx.Graph, node: fx.Node, held: nn.Module) -> None:
    at = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
    holder = node.args[at]
    assert isinstance(holder, fx.Node)
    region = held.get_submodule(str(holder.target))
    assert isinstance(region, fx.GraphModule)
    inline_regions(region.graph, region)
    inputs = [inner for inner in region.graph.nodes if inner.op == "placeholder"]
    values: dict[fx.Node, Any] = dict(zip(inputs, node.args[at + 1 :], strict=True))
    with graph.inserting_before(node):
        found = graph.graph_copy(region.graph, values)
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(found, tuple | list):
            user.replace_all_uses_with(found[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    if isinstance(found, fx.Node):
        node.replace_all_uses_with(found)
    graph.erase_node(node)
    if not holder.users:
        graph.erase_node(holder)
