"""Prove that a site's forward really runs, by one probe in train mode and one in eval.

A forward that is never called grows nothing, silently: `nn.TransformerEncoderLayer`
skips its linears in eval without grad, `nn.MultiheadAttention` never calls its
`out_proj`. The probe runs on a copy, so the model, its buffers and the random
generators are as before.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from esper.blueprint.interface import Interface, Kind
from esper.errors import WrapRefused
from esper.host.causal import is_causal
from esper.host.forward import PREFIX, own_forward, runs_as_chain, with_first
from esper.host.fused import fused_ancestors, without_nesting
from esper.host.kept import kept_generators
from esper.host.layout import CHANNELS_FIRST, CHANNELS_LAST, Layout, Trail, layout_of, states_batch_first
from esper.host.sites import Site

Run = Callable[[nn.Module], object]


@dataclass(slots=True)
class _Record:
    """What one module did while the probe ran."""

    train_calls: int = 0
    eval_calls: int = 0
    unfit: str = ""
    runs_children: bool = False
    seen: list[tuple[Layout, torch.Size, torch.dtype]] = field(default_factory=list)
    lives: list[Tensor] = field(default_factory=list)  # what each call in train mode returned, with its graph
    causal: bool = False


def prove(model: nn.Module, chosen: list[tuple[str, nn.Module]], run: Run, *, causal: bool | None = None) -> list[Site]:
    """Sites of `model` for the chosen modules.

    `run` calls a model on one batch. `causal` states whether position t of the model's
    output may depend on positions <= t only; None finds out from the gradient, site by site.

    Raises WrapRefused for a module that is not called in both modes, whose output no graft
    can join or does not reach the model's, or whose calls differ in shape; the message names
    the site to take.
    """
    records = _probe(model, [name for name, _ in chosen], run)
    return [_site(model, name, module, records[name], causal) for name, module in chosen]


def _probe(model: nn.Module, names: list[str], run: Run) -> dict[str, _Record]:
    twin = _copy(model)
    records = {name: _Record() for name in names}
    trail = Trail()
    _watch(twin, records, trail)
    without_nesting(twin)
    with kept_generators(model):
        with torch.enable_grad():
            output = _run(twin.train(), run, records)
        trail.closed = True  # a checkpointed block is run again where a gradient is asked for
        for name, record in records.items():
            record.seen = [(_turned(model, name, trail, *seen), *seen[1:]) for seen in record.seen]
        _ask_gradients(model, output, records, trail)
        trail.closed = False
        with torch.no_grad():
            _run(twin.eval(), run, records)
    return records


def _ask_gradients(model: nn.Module, output: object, records: dict[str, _Record], trail: Trail) -> None:
    """Find out what only a gradient tells: which sites are causal, and which reach the output."""
    try:
        for record in records.values():
            if record.lives:
                record.causal = is_causal(output, record.lives[-1], record.seen[-1][0], trail.roots)
        _refuse_unreached(output, records)
    except RuntimeError as error:
        names = [name for name, record in records.items() if record.unfit] or list(records)
        raise WrapRefused(
            f"{names[0]} in {type(model).__name__} cannot be a site: whether it looks ahead and reaches the output is "
            f"asked of gradients, and they cannot be had: {error}"
        ) from error
    trail.roots.clear()


def _refuse_unreached(output: object, records: dict[str, _Record]) -> None:
    """Say of each site whose output the model's does not depend on that it is unfit, and let the graphs go."""
    ends = [leaf for leaf in _tensors(output) if leaf.requires_grad]
    lives = [live for record in records.values() for live in record.lives]
    if ends and lives:  # a run that returns nothing says nothing
        gradients = torch.autograd.grad(ends, lives, [torch.ones_like(end) for end in ends], allow_unused=True)
        reached = {id(live) for live, gradient in zip(lives, gradients, strict=True) if gradient is not None}
        for record in records.values():
            if record.lives and not any(id(live) in reached for live in record.lives):
                record.unfit = "what it returns does not reach the model's output, so a seed there could not learn"
    for record in records.values():
        record.lives.clear()


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise WrapRefused(
            f"{type(model).__name__} cannot be deep-copied ({type(error).__name__}: {error}), and the probe must not "
            "touch the model itself; wrap it before its first forward, or make its state copyable"
        ) from error


def _run(twin: nn.Module, run: Run, records: dict[str, _Record]) -> object:
    try:
        return run(twin)
    except Exception as error:
        name = next((name for name, record in records.items() if record.runs_children), "")
        if name:
            raise WrapRefused(
                f"{name} ({type(twin.get_submodule(name)).__name__}) cannot be a site: its forward runs every child it "
                "has, so a seed's branch would run as one more layer; take a layer inside it instead"
            ) from error
        raise WrapRefused(
            f"the probe batch does not run through the model in {'train' if twin.training else 'eval'} mode: "
            f"{type(error).__name__}: {error}; give an example that the model takes in both"
        ) from error


def _watch(twin: nn.Module, records: dict[str, _Record], trail: Trail) -> None:
    """Let sites record their calls, and layers whose class tells a layout leave a trail."""
    for name, module in list(twin.named_modules()):
        tells = isinstance(module, CHANNELS_FIRST + CHANNELS_LAST)
        if name in records:
            if not runs_as_chain(module):
                module.add_module(f"{PREFIX}probe", _Canary(records[name]))
            module.forward = functools.partial(_recording_forward, module, records[name], trail)
        elif name and tells:
            module.forward = functools.partial(_trailing_forward, module, trail)

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hook.remove()  # before the forward: a hook alone would keep blocks off their fused paths
        trail.input_batch = next((len(t) for t in _tensors((args, kwargs)) if t.ndim), None)
        return _pytree.tree_map(functools.partial(_rooted, trail), (args, kwargs))

    hook = twin.register_forward_pre_hook(note, with_kwargs=True)


def _rooted(trail: Trail, leaf: Any) -> Any:
    """Of a float input with an order, a copy that the output's gradient can be asked about."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.ndim != 3:
        return leaf
    root = leaf.detach().requires_grad_().clone()
    trail.roots.append(root)
    return root


class _Canary(nn.Module):
    """A child that only a forward which runs all of its module's children would call."""

    def __init__(self, record: _Record) -> None:
        super().__init__()
        self.record = record

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self.record.runs_children = True
        raise RuntimeError("a child that nobody named was run")


def _trailing_forward(module: nn.Module, trail: Trail, *args: Any, **kwargs: Any) -> Any:
    output = type(module).forward(module, *args, **kwargs)
    first = output[0] if isinstance(output, tuple) else output
    if not isinstance(first, Tensor):
        return output
    if isinstance(module, nn.Embedding) and module.training and torch.is_grad_enabled():
        first = _asked_about(first)
        output = with_first(output, first)
    trail.see(module, first)
    return output


def _recording_forward(module: nn.Module, record: _Record, trail: Trail, *args: Any, **kwargs: Any) -> Any:
    output = own_forward(module, *args, **kwargs)
    found = layout_of(module, output, trail)
    layout, tensor = (None, None) if isinstance(found, str) else found
    if module.training and torch.is_grad_enabled() and tensor is not None:
        tensor = _asked_about(tensor)
        output = with_first(output, tensor)
    if trail.closed:
        return output
    record.train_calls += module.training
    record.eval_calls += not module.training
    if layout is None or tensor is None:
        record.unfit = str(found)
        return output
    trail.see(module, tensor)
    record.seen.append((layout, tensor.shape, tensor.dtype))
    if module.training and torch.is_grad_enabled():
        record.lives.append(tensor)
    elif module.training:
        record.unfit = (
            "in train mode it is run without grad, so a seed there could not learn; where that is a checkpoint, "
            "give it use_reentrant=False"
        )
    return output


def _asked_about(tensor: Tensor) -> Tensor:
    """An equal tensor of its own, about which a gradient can be asked: what a frozen layer returns has none.

    A copy, so that what the caller does with it is told from what the layer itself did.
    """
    return (tensor if tensor.requires_grad else tensor.detach().requires_grad_()).clone()


def _turned(model: nn.Module, name: str, trail: Trail, layout: Layout, shape: torch.Size, _: torch.dtype) -> Layout:
    """The layout once the whole pass has shown which size is the batch."""
    if layout.kind is not Kind.TOKENS:
        return layout
    stated = (states_batch_first(model.get_submodule(path)) for path in (name, *_ancestors(name), ""))
    nearest = next((flag for flag in stated if flag is not None), None)
    return replace(layout, transposed=trail.is_transposed(shape, nearest))


def _tensors(output: object) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _site(model: nn.Module, name: str, module: nn.Module, record: _Record, causal: bool | None) -> Site:
    if not record.train_calls or not record.eval_calls:
        raise WrapRefused(_never_called(model, name, module, record))
    if record.unfit:
        raise WrapRefused(f"{name} ({type(module).__name__}) cannot be a site: {record.unfit}")
    layout, shape, dtype = record.seen[0]
    channels = {(seen.kind, size[seen.channel_dim]) for seen, size, _ in record.seen}
    if len(channels) > 1:
        shapes = sorted({str(list(size)) for _, size, _ in record.seen})
        raise WrapRefused(
            f"{name} is called several times with outputs of different channels or rank ({', '.join(shapes)}), and one "
            "seed must serve all calls; take the blocks that call it instead"
        )
    ordered = layout.position_dim is not None
    looks_back = ordered and (record.causal if causal is None else causal)
    interface = Interface(layout.kind, shape[layout.channel_dim], _parameter_dtype(module, dtype), looks_back)
    positions = max(1, shape.numel() // max(1, shape[layout.batch_dim]) // interface.channels)
    return Site(name, module, type(module).__name__, layout, interface, positions, fused_ancestors(model, name))


def _parameter_dtype(module: nn.Module, activation: torch.dtype) -> torch.dtype:
    """A graft's parameters follow the site's own; under autocast activations are narrower than those."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), activation)


def _ancestors(name: str) -> list[str]:
    """Enclosing modules, innermost first, the model itself left out."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _never_called(model: nn.Module, name: str, module: nn.Module, record: _Record) -> str:
    said = f"{name} ({type(module).__name__}) cannot be a site: "
    for ancestor in _ancestors(name):
        block = model.get_submodule(ancestor)
        if isinstance(block, nn.MultiheadAttention):
            return f"{said}nn.MultiheadAttention uses its weights without calling it; take '{ancestor}' instead"
        if isinstance(block, nn.TransformerEncoderLayer) and record.train_calls:
            return (
                f"{said}in eval without grad nn.TransformerEncoderLayer takes a fused path that never calls it; "
                f"take the block '{ancestor}' instead"
            )
    modes = [mode for mode, calls in (("train", record.train_calls), ("eval", record.eval_calls)) if not calls]
    parent = next(iter(_ancestors(name)), "")
    remedy = (
        f"take the block '{parent}' instead, or probe with a batch that reaches it"
        if parent
        else "probe with a batch that reaches it"
    )
    return f"{said}its forward is never called in {' and '.join(modes)} mode on the probe batch; {remedy}"
