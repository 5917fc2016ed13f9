"""`wrap` a model: prove its sites and give it a table of dormant seeds. The model itself is not touched."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from esper.errors import Conflict, InvalidRequest, NotFound
from esper.host.proof import prove
from esper.host.sites import Target, select
from esper.kasmina.executor import Executor
from esper.kasmina.handle import ModelHandle
from esper.kasmina.pending import Pending
from esper.kasmina.regrow import device_of
from esper.kasmina.table import SeedTable

# A plain attribute of a wrapped model: it lives as long as the model does, and a copy of the model has none.
_HANDLE = "_esper_handle"


def wrap(
    model: nn.Module,
    target_layers: Target | Iterable[Target] | None = None,
    seeds_per_layer: int = 4,
    telemetry_enabled: bool = True,
    *,
    example: Any = None,
    run: Callable[[nn.Module], object] | None = None,
    causal: bool | None = None,
) -> ModelHandle:
    """Attach `seeds_per_layer` dormant seeds to each layer that `target_layers` names.

    `target_layers`: module types, patterns over qualified names ("encoder.*.fc1"), or
    callables (name, module) -> bool; None stands for Linear, Conv1d and Conv2d. Each layer
    is proved to be called, in train mode and in eval, on `example` (the model's input: a
    tensor, a tuple of arguments or a dict of keyword arguments) or by `run(model)`; without
    either, on the first batch that the model is called on.
    `causal`: whether position t of the output may see positions <= t only; None finds out.

    Returns the handle; `model` stays your object and a dormant layer is the plain module.
    Raises WrapRefused naming what cannot carry seeds and what to name instead.
    """
    if _handle(model) is not None:
        raise Conflict(f"this {type(model).__name__} is wrapped already; call esper.unwrap(model) first")
    if not 1 <= seeds_per_layer < 1024:
        raise InvalidRequest(f"seeds_per_layer must be 1 to 1,023, got {seeds_per_layer}")
    chosen = select(model, target_layers)
    probe = run or _runner(example)
    sites = {site.name: site for site in prove(model, chosen, probe, causal=causal)} if probe is not None else {}
    table = SeedTable.make(((name, seeds_per_layer) for name, _ in chosen), device_of(model))
    handle = ModelHandle(model, Executor(model, sites, table), telemetry_enabled)
    vars(model)[_HANDLE] = handle
    if probe is None:
        handle.pending = Pending(handle, chosen, causal)
    return handle


def unwrap(model: nn.Module | ModelHandle) -> nn.Module:
    """Give a plain module back: fossils kept as branches stay, anything still on trial goes.

    Raises NotFound for a model that is not wrapped.
    """
    handle = model if isinstance(model, ModelHandle) else _handle(model)
    if handle is None:
        raise NotFound(f"this {type(model).__name__} is not wrapped")
    handle.release()
    vars(handle.model).pop(_HANDLE, None)
    return handle.model


def handle_of(model: nn.Module) -> ModelHandle:
    """The handle of a wrapped model. Raises NotFound for another."""
    handle = _handle(model)
    if handle is None:
        raise NotFound(f"this {type(model).__name__} is not wrapped; call esper.wrap(model, ...) first")
    return handle


def _handle(model: nn.Module) -> ModelHandle | None:
    handle: ModelHandle | None = vars(model).get(_HANDLE)
    return handle


def _runner(example: Any) -> Callable[[nn.Module], object] | None:
    if example is None:
        return None
    if isinstance(example, Tensor):
        return lambda model: model(example)
    if isinstance(example, Mapping):
        return lambda model: model(**example)
    return lambda model: model(*example)
